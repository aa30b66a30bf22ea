"""A small WordNet of our own in the form of the database files (wndb(5WN))."""

from collections.abc import Callable
from pathlib import Path

# part of speech -> offset -> names
SENSES = {
    "noun": {2084071: ["dog", "domestic_dog"], 7697537: ["hot_dog", "dog"], 2355227: ["mouse"],
             9605289: ["man", "Adam"], 10787470: ["woman"], 8860123: ["Rome"], 5600000: ["running"]},
    "verb": {1926311: ["run"], 2084072: ["dog", "chase"], 1700000: ["leave"]},
    "adj": {980527: ["blue", "galore(ip)"], 1382086: ["big"]},
    "adv": {11093: ["well"]},
}  # fmt: skip
IRREGULAR = {
    "noun": ["mice mouse", "men man", "women woman", "leaves leaf leave"],
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


def senses(folder: str) -> Callable[[str], list[int]]:
    """NLTK 3.8.1's `[sense.offset() for sense in synsets(word)]` on a folder of these files, in words of our own.

    Of a part of speech: an irregular word has itself and its base forms; any other itself and what one ending less
    leaves; only where WordNet has none of these, what two leave, then three.
    """
    ends = {
        "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
        "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
        "adj": "er: est: er:e est:e",
        "adv": "",
    }
    read = {}
    for pos, listed in ends.items():
        lines = [line.split() for line in Path(folder, f"index.{pos}").read_text().splitlines() if line[0] != " "]
        # a line: lemma, pos, senses, p, p pointers, senses, tagged, offsets
        index = {words[0]: [int(offset) for offset in words[6 + int(words[3]) :]] for words in lines}
        irregular = [line.split() for line in Path(folder, f"{pos}.exc").read_text().splitlines()]
        read[pos] = index, {form: bases for form, *bases in irregular}, [end.split(":") for end in listed.split()]

    def of(word: str) -> list[int]:
        word, found = word.lower(), []
        for index, irregular, pairs in read.values():
            level = less([word], pairs) if word not in irregular else []
            tried = [word, *level, *irregular.get(word, [])]
            while level and not any(form in index for form in tried):
                tried = level = less(level, pairs)
            found += [offset for form in dict.fromkeys(tried) for offset in index.get(form, [])]
        return found

    def less(forms: list[str], pairs: list[list[str]]) -> list[str]:
        return [form.removesuffix(end) + base for form in forms for end, base in pairs if form.endswith(end)]

    return of
