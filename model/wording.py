"""Gender-neutral wording: 'a person' and 'their' for what a caption guesses about people's gender.

A table over the words of an English sentence, and the few rules of grammar that its substitutes need: articles,
verbs after 'they', 'her' as 'their' or 'them', and 'a person and a person' told as 'two people'.
"""

from __future__ import annotations

import re

# One row a substitute: singular, plural, and the words it stands for, each as singular/plural.
_ROWS = """
person, people: man/men woman/women lady/ladies guy/guys gentleman/gentlemen dude/dudes gal/gals male/males
    female/females
child, children: boy/boys girl/girls lad/lads son/sons daughter/daughters
baby, babies: baby-boy/baby-boys baby-girl/baby-girls
teenager, teenagers: teenage-boy/teenage-boys teenage-girl/teenage-girls teen-boy/teen-boys teen-girl/teen-girls
schoolchild, schoolchildren: schoolboy/schoolboys schoolgirl/schoolgirls
parent, parents: mother/mothers father/fathers mom/moms mum/mums mommy/mommies momma/mommas dad/dads daddy/daddies
grandparent, grandparents: grandmother/grandmothers grandfather/grandfathers grandma/grandmas grandpa/grandpas
grandchild, grandchildren: grandson/grandsons granddaughter/granddaughters
sibling, siblings: brother/brothers sister/sisters
relative, relatives: aunt/aunts uncle/uncles niece/nieces nephew/nephews
spouse, spouses: husband/husbands wife/wives
partner, partners: boyfriend/boyfriends girlfriend/girlfriends
newlywed, newlyweds: bride/brides groom/grooms bridegroom/bridegrooms
wedding attendant, wedding attendants: bridesmaid/bridesmaids groomsman/groomsmen
police officer, police officers: policeman/policemen policewoman/policewomen
firefighter, firefighters: fireman/firemen
fisher, fishers: fisherman/fishermen
businessperson, businesspeople: businessman/businessmen businesswoman/businesswomen
salesperson, salespeople: salesman/salesmen saleswoman/saleswomen
camera operator, camera operators: cameraman/cameramen
mail carrier, mail carriers: mailman/mailmen postman/postmen
worker, workers: workman/workmen
repairer, repairers: repairman/repairmen
artisan, artisans: craftsman/craftsmen
service member, service members: serviceman/servicemen
batter, batters: batsman/batsmen
base player, base players: baseman/basemen
cowhand, cowhands: cowboy/cowboys cowgirl/cowgirls
server, servers: waiter/waiters waitress/waitresses
flight attendant, flight attendants: stewardess/stewardesses steward/stewards
actor, actors: actress/actresses
host, hosts: hostess/hostesses
ballet dancer, ballet dancers: ballerina/ballerinas
"""

_NOUNS: dict[str, str] = {}
_PLURALS: dict[str, str] = {}  # of the substitutes
for _row in re.sub(r"\n +", " ", _ROWS).strip().splitlines():
    _substitutes, _, _words = _row.partition(":")
    _one, _many = _substitutes.split(", ")
    _PLURALS[_one] = _many
    for _pair in _words.split():
        _single, _plural = (word.replace("-", " ") for word in _pair.split("/"))
        _NOUNS |= {_single: _one, _plural: _many}
_NOUNS |= {"mans": "person's", "womans": "person's", "mens": "people's", "womens": "people's"}  # as often misspelt

# Not about a person: what these words before them are the kind of.
_KINDS = {"cowboy": ("hat", "hats", "boots", "outfit", "costume"), "men's": ("room", "restroom", "bathroom", "toilet"),
          "women's": ("room", "restroom", "bathroom", "toilet")}  # fmt: skip
_GROOMED = ("each", "a", "an", "the", "its", "their", "his", "her", "itself", "themselves", "one", "another")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SEXES = ("male", "female")  # dropped before a noun, a person where they are one
_FUNCTION = _set(
    "a an the this that these those and or but as at about above across after against along among around away back "
    "before behind below beneath beside besides between beyond by down during for forward from here in inside into "
    "like near next of off on onto out outside over past since through to together toward towards under until up "
    "upon via while when where with within without is are was were be being has have had does do did can will would "
    "could may might must who whom which whose he she they it his her their its not all both just also too then "
    "there very so if because each plus"
)
_ENGLISH = _set("a an the and with are he she his her him two three men women man woman boy girl while")
_OTHERS = _set(
    "un une et il le les el los las y en de der die das ein eine und een het met och på ett i um uma os ist auf mit im"
    " am sur dans con por"
)
# What one does, where 'watches her' goes on with it.
_BARE = _set("play walk run jump ride sit stand swim eat go do get climb swing sleep dance drink")
_THINGS = _set("wedding clothing painting drawing building belonging earring ring wing evening morning")

_VERBS = {
    "is": "are", "was": "were", "has": "have", "does": "do", "isn't": "aren't", "wasn't": "weren't",
    "hasn't": "haven't", "doesn't": "don't",
}  # fmt: skip
_NO_VERBS = frozenset(("always", "sometimes", "perhaps", "this", "his", "its", "towards", "downwards", "upwards", "as"))
_WALKS = re.compile(
    "((add|appear|attempt|bend|bite|brush|bounce|carr|catch|chew|climb|cook|crouch|cross|cut|danc|do|drag|drink|driv|"
    "eat|fall|feed|fl|get|giv|go|grab|hang|has|hit|hold|hug|i|jump|kick|kneel|lay|lead|lean|leap|li|lick|lift|listen|"
    "look|mak|open|paddl|pass|pedal|perform|pet|pick|play|point|pos|prepar|pull|push|put|rac|rais|reach|read|rid|run|"
    "say|see|serv|shav|show|sing|sit|skat|ski|slid|smil|splash|stand|star|swim|swing|tak|talk|throw|touch|tr|try|turn|"
    "us|wad|wait|walk|wash|watch|wav|wear|work|writ)(e?s|ies))"
)  # that are no plural nouns after 'and', or seldom

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*['’]?")


def neutral(caption: str) -> str:
    """An English caption without its guesses about gender: 'A man walks his dog.' -> 'A person walks their dog.'

    Words that say nothing about people's gender stay as they are, and so does a caption in another language.
    """
    # Words at odd places, what stands between them at even ones.
    parts = re.split(f"({_WORD.pattern})", caption)
    words = [word.lower().replace("’", "'") for word in parts[1::2]]
    # 'man' and 'son' are words of other languages too.
    others = sum(word in _OTHERS for word in words)
    if others and others >= sum(word in _ENGLISH for word in words):
        return caption
    out = _substituted(words)
    if out == words:
        return caption
    made = parts[0]
    curly = "’" in caption
    for written, was, now, gap in zip(parts[1::2], words, out, parts[2::2], strict=True):
        if now == "":  # dropped, with one of its two gaps
            made += gap.removeprefix(" ")
        else:
            made += (written if was == now else _cased(now.replace("'", "’") if curly else now, written)) + gap
    return _first_upper(_merged(made), caption)


def _substituted(words: list[str]) -> list[str]:
    """For each word what stands in its place; "" where it is left out."""
    out = list(words)
    they = False  # whether a verb of 'they' may come, and agrees no more
    for i, word in enumerate(words):
        before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        if out[i] != word:
            continue  # settled with a word before
        stem, mark = _possessive(word)
        if word in ("he", "she"):
            out[i], they = "they", True
            _agree(words, out, i + 1)
        elif word in ("he's", "she's"):
            out[i] = "they've" if after in ("got", "been", "had") else "they're"
        elif word in ("he'll", "she'll", "he'd", "she'd"):
            out[i] = "they" + word[word.index("'") :]
        elif word == "him":
            out[i] = "them"
        elif word in ("himself", "herself"):
            out[i] = "themselves"
        elif word == "hers":
            out[i] = "theirs"
        elif word == "his":
            out[i] = "their" if after else "theirs"
        elif word == "her":
            out[i] = "them" if _is_object(words, i) else "their"
        elif word in _SEXES and _is_adjective(words, i):
            out[i] = ""
        elif before == "a" and word in ("boys", "girls", "men", "women", "mens", "womens", "men's", "women's"):
            out[i] = ""  # 'a girls soccer team'
        elif (after in _KINDS.get(word, ())) or (stem == "groom" and after in _GROOMED and before not in ("a", "the")):
            pass
        elif f"{stem} {_possessive(after)[0]}" in _NOUNS:
            stem, mark = f"{stem} {_possessive(after)[0]}", _possessive(after)[1]
            out[i], out[i + 1] = "", _NOUNS[stem] + mark
        elif stem in _NOUNS:
            out[i] = _NOUNS[stem] + ("'s" if mark == "'" and not _NOUNS[stem].endswith("s") else mark)
        elif they and before == "and" and _WALKS.fullmatch(word):
            out[i] = _plain(word)
        if word in ("that", "which", "who", "while", "as", "when", "."):
            they = False
    for i, word in enumerate(out[:-1]):
        if word in ("a", "an") and out[i + 1] != words[i + 1]:
            following = next((w for w in out[i + 1 :] if w), "")
            out[i] = "an" if _sounds_like_a_vowel(following) else "a"
    return out


def _possessive(word: str) -> tuple[str, str]:
    """A word without its "'s" or "'", and that."""
    for mark in ("'s", "'"):
        if word.endswith(mark):
            return word.removesuffix(mark), mark
    return word, ""


def _is_object(words: list[str], i: int) -> bool:
    """Whether the 'her' at i is 'them', not 'their'."""
    after, next_but_one = (*words[i + 1 : i + 3], "", "")[:2]
    if not after or after in _FUNCTION or after in _BARE:
        return True
    return after.endswith("ing") and after not in _THINGS and (not next_but_one or next_but_one in _FUNCTION)


def _is_adjective(words: list[str], i: int) -> bool:
    """Whether the 'male' or 'female' at i says what the next word is, and is not a person itself."""
    before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
    if not after or after in _FUNCTION or after.endswith("ing"):
        return False
    # 'a male jumps' has a verb, 'two male swimmers' have not.
    many = any(word in _COUNTS[2:] or word in ("several", "many", "some", "few") for word in words[max(i - 2, 0) : i])
    return many or not (before and after.endswith("s") and not after.endswith(("ss", "is", "us")))


def _agree(words: list[str], out: list[str], i: int) -> None:
    """Put the verb that follows 'they' at i into the plural."""
    while i < len(words) and (words[i].endswith("ly") or words[i] in ("just", "also", "then", "still", "always")):
        i += 1
    if i < len(words):
        out[i] = _plain(words[i])


def _plain(verb: str) -> str:
    """'walks' -> 'walk', 'is' -> 'are'; what is no third person stays."""
    if verb in _VERBS:
        return _VERBS[verb]
    if not verb.endswith("s") or verb.endswith(("ss", "us", "'s")) or verb in _NO_VERBS:
        return verb
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"  # tries
    if verb.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return verb[:-2]  # catches, goes
    return verb[:-1]


def _sounds_like_a_vowel(word: str) -> bool:
    if word.startswith(("hour", "honest", "heir")):
        return True
    return word[:1] in "aeiou" and not re.match("uni(?!n)|us(e|u)|eu|one|ur[aeiou]", word)


_PHRASE = "|".join(sorted(_PLURALS, key=len, reverse=True))
_MANY = {many: one for one, many in _PLURALS.items()}
_PLURAL_PHRASE = "|".join(sorted(_MANY, key=len, reverse=True))
_NUMBER = "a|an|" + "|".join(_COUNTS[1:9])
_PAIR = re.compile(
    rf"\b(?:(?P<the>the) |(?P<left>{_NUMBER}) )(?P<adjective>(?:[a-z]+ )?)"
    rf"(?:(?P<one>{_PHRASE})|(?P<many>{_PLURAL_PHRASE})) and (?:(?P<right>{_NUMBER}|the) )?(?P<same>(?:[a-z]+ )??)"
    rf"(?P<other>{_PHRASE}|{_PLURAL_PHRASE})(?![\w'’-])",
    re.IGNORECASE,
)
_TWICE = re.compile(rf"\b(?P<same>{_PLURAL_PHRASE}|their|they|them) (?:and|or) (?P=same)(?![\w'’-])", re.IGNORECASE)
_ANOTHER = re.compile(
    rf"\banother (?P<adjective>(?:[a-z]+ )?)(?P<one>{_PHRASE}) and (?:a )?(?P=one)(?![\w'’-])", re.IGNORECASE
)
_BARE_PAIR = re.compile(rf"^(?P<one>{_PHRASE}) and (?P=one)(?![\w'’-])", re.IGNORECASE)


def _merged(text: str) -> str:
    """'A person and a person' -> 'Two people', where both were said in the same way."""
    if " and " not in text and " or " not in text:
        return text
    text = _TWICE.sub(lambda m: m["same"], text)
    text = _BARE_PAIR.sub(lambda m: f"two {_PLURALS[m['one'].lower()]}", text)
    text = _ANOTHER.sub(lambda m: _cased(f"two other {m['adjective']}{_PLURALS[m['one'].lower()]}", m[0]), text)
    return _PAIR.sub(_sum, text)


def _sum(found: re.Match[str]) -> str:
    many = _PLURALS[found["one"].lower()] if found["one"] else found["many"].lower()
    other = found["other"].lower()
    said_alike = found["same"].lower() in (found["adjective"].lower(), "")
    if not said_alike or (found["adjective"] and not found["same"] and found["right"]):
        return found[0]  # 'an old person and a person'
    if _PLURALS.get(other, other) != many:
        return found[0]
    if found["the"]:
        both_single = found["one"] and other in _PLURALS and found["right"] in (None, "the")
        return _cased(f"the two {found['adjective']}{many}", found[0]) if both_single else found[0]
    left = _count(found["left"])
    right = 1 if found["right"] is None and other in _PLURALS else _count(found["right"])
    if not left or not right or left + right >= len(_COUNTS):
        return found[0]
    return _cased(f"{_COUNTS[left + right]} {found['adjective']}{many}", found[0])


def _count(word: str | None) -> int:
    """A number of people; 0 for none that is said."""
    word = (word or "").lower()
    return 1 if word in ("a", "an") else _COUNTS.index(word) if word in _COUNTS else 0


def _cased(word: str, written: str) -> str:
    """`word` with a first letter as the `written` one's."""
    if written.isupper() and len(written) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if written[:1].isupper() else word


def _first_upper(text: str, caption: str) -> str:
    return text[:1].upper() + text[1:] if caption[:1].isupper() else text
