"""A small WordNet of our own in the form of the database files (wndb(5WN))."""

from pathlib import Path

# part of speech -> offset -> names
SENSES = {
    "noun": {2084071: ["dog", "domestic_dog"], 7697537: ["hot_dog", "dog"], 2355227: ["mouse"],
             9605289: ["man", "Adam"], 8860123: ["Rome"], 5600000: ["running"]},
    "verb": {1926311: ["run"], 2084072: ["dog", "chase"], 1700000: ["leave"]},
    "adj": {980527: ["blue", "galore(ip)"], 1382086: ["big"]},
    "adv": {11093: ["well"]},
}  # fmt: skip
IRREGULAR = {
    "noun": ["mice mouse", "men man", "leaves leaf leave"],
    "verb": ["ran run"],
    "adj": ["bigger big"],
    "adv": [],
}


def write(folder: Path) -> str:
    folder.mkdir()
    for pos, senses in SENSES.items():
        lemmas: dict[str, list[int]] = {}
        data = "  1 This is no software or database of Princeton's  \n"
        for offset, names in senses.items():
            words = " ".join(f"{name} 0" for name in names)
            data += f"{offset:08d} 03 {pos[0]} {len(names):02x} {words} 000 | a sense of {names[0]}\n"
            for name in names:
                lemmas.setdefault(name.lower().partition("(")[0], []).append(offset)
        index = "  1 This is no software or database of Princeton's  \n"
        for lemma, offsets in sorted(lemmas.items()):
            listed = " ".join(f"{offset:08d}" for offset in offsets)
            index += f"{lemma} {pos[0]} {len(offsets)} 2 @ ~ {len(offsets)} 1 {listed}  \n"
        (folder / f"data.{pos}").write_text(data)
        (folder / f"index.{pos}").write_text(index)
        (folder / f"{pos}.exc").write_text("".join(f"{line}\n" for line in IRREGULAR[pos]))
    return str(folder)
