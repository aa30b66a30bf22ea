"""A snapshot's shards described in Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html).

Written by hand, since importing mlcroissant takes seconds; a test loads it by mlcroissant. There is no datePublished,
which mlcroissant recommends and does not demand: a snapshot's files hold no time, so that equal runs give equal bytes.
"""

import os.path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.parts import snapshot_folder
from vlmdata.report.facts import column_meanings

# The context of the specification; mlcroissant warns about any other.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_MIME = {"webdataset": "application/x-tar", "parquet": "application/x-parquet"}
_SAMPLE = {
    "jpg": "the image, JPEG",
    "txt": "the caption",
    "captions": "all captions of the pair, its own first",
    "faces_blurred": "faces in the image that are blurred",
}


def croissant(
    dataset: Dataset, manifest: dict[str, Any], name: str, description: str, licences: list[str], languages: list[str]
) -> dict[str, Any]:
    """The JSON-LD of a snapshot: a FileObject for each shard, FileSets over them, and a record set of its samples.

    The samples are read from the Parquet shards; where there are none, images and captions from the tars.
    licences, languages: of the kept pairs, the commonest first. Paths are relative to the snapshot's folder.
    """
    folder = snapshot_folder(manifest["number"])
    objects = [_file_object(shard, folder) for shard in manifest["shards"]]
    sets: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    parquet = [shard for shard in manifest["shards"] if shard["format"] == "parquet"]
    tars = [shard for shard in manifest["shards"] if shard["format"] == "webdataset"]
    if parquet:
        # Without containedIn: mlcroissant reads the columns of files that lie in a folder, not of listed ones.
        places = sorted({_identity(shard, folder).rpartition("/")[0] for shard in parquet})
        sets.append(_file_set("parquet", [f"{place}/*.parquet" for place in places], []))
        with dataset.open(parquet[0]["path"]) as handle:
            columns = pq.read_schema(handle)
        records.append(_samples(columns, column_meanings(manifest), copies(manifest)))
    if tars:
        within = [_identity(shard, folder) for shard in tars]
        sets += [_file_set(kind, [f"*.{kind}"], within) for kind in ("jpg", "txt", "json")]
        if not parquet:
            records += [_members("jpg", "sc:ImageObject"), _members("txt", "sc:Text")]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "version": f"{manifest['number']}.{manifest['revision']}.0",
        "license": licences or ["as each source states it; see the column license of the samples"],
        "inLanguage": languages,
        "distribution": [*objects, *sets],
        "recordSet": records,
    }


def copies(manifest: dict[str, Any]) -> bool:
    """Whether some pairs stand in the shards more than once."""
    return sum(manifest["splits"].values()) > manifest["funnel"][-1]["left"]


def _identity(shard: dict[str, Any], folder: str) -> str:
    """The shard's path from the snapshot's folder, which is also where readers look for it."""
    return os.path.relpath(shard["path"], folder).replace(os.sep, "/")


def _file_object(shard: dict[str, Any], folder: str) -> dict[str, Any]:
    identity = _identity(shard, folder)
    return {
        "@type": "cr:FileObject",
        "@id": identity,
        "name": identity.rsplit("/", 1)[-1],
        "description": f"{shard['rows']} samples of the split {shard['split']}",
        "contentUrl": identity,
        "contentSize": f"{shard['bytes']} B",
        "encodingFormat": _MIME[shard["format"]],
        "sha256": shard["sha256"],
    }


def _file_set(name: str, patterns: list[str], within: list[str]) -> dict[str, Any]:
    """Files of one kind: those in the archives `within`, or in the snapshot's folder."""
    mime = {"parquet": _MIME["parquet"], "jpg": "image/jpeg", "txt": "text/plain", "json": "application/json"}[name]
    described: dict[str, Any] = {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "encodingFormat": mime,
        "includes": patterns,
    }
    return described | ({"containedIn": [{"@id": identity} for identity in within]} if within else {})


def _samples(columns: pa.Schema, meanings: dict[str, str], repeated_pairs: bool) -> dict[str, Any]:
    """A record for each row of the Parquet shards; a uid is a key where no pair stands in them more than once."""
    fields = []
    for column in columns:
        repeated = pa.types.is_list(column.type)
        kind = column.type.value_type if repeated else column.type
        entry: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"samples/{column.name}",
            "name": column.name,
            "description": _SAMPLE.get(column.name) or meanings.get(column.name, ""),
            "dataType": "sc:ImageObject" if column.name == "jpg" else _data_type(kind),
            "source": {"fileSet": {"@id": "parquet"}, "extract": {"column": column.name}},
        }
        if repeated:
            entry["repeated"] = True
        fields.append(entry)
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "one record a sample: a kept pair or a copy of one"
        if repeated_pairs
        else "one record a kept pair",
        **({} if repeated_pairs else {"key": {"@id": "samples/uid"}}),
        "field": fields,
    }


def _members(kind: str, data_type: str) -> dict[str, Any]:
    """A record for each file of one kind in the tars, with the uid from its name."""
    source = {"fileSet": {"@id": kind}}
    uid = {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^([0-9a-f]+(?:_\d+)?)\."}}
    return {
        "@type": "cr:RecordSet",
        "@id": f"{kind}_members",
        "name": f"{kind}_members",
        "description": f"one record a kept pair: {_SAMPLE[kind]}",
        "field": [
            {"@type": "cr:Field", "@id": f"{kind}_members/uid", "name": "uid", "dataType": "sc:Text",
             "source": source | uid},
            {"@type": "cr:Field", "@id": f"{kind}_members/{kind}", "name": kind, "dataType": data_type,
             "source": source | {"extract": {"fileProperty": "content"}}},
        ],
    }  # fmt: skip


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
