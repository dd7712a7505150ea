"""The closed grammar: every sentence that the micro model is taught, and which of them are held out.

English is written in templates: `[a|b]` takes one of the alternatives, `<rule>` a rule of that name,
`<5-35>` a number in words, `<digits 3-7>` so many single digits. German and Spanish come in pairs with their
English translation, filled with the same values.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = _words(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")

RULES = {
    "day": "|".join(DAYS),
    "month": "|".join(MONTHS),
    "room": "kitchen|bedroom|living room|bathroom|garden|office",
    "device": "light|lights|lamp|heating|fan|radio|television",
    "person": "Anna|Peter|Maria|John|my mother|my father|the doctor|the office",
    "item": "milk|bread|butter|cheese|coffee|tea|sugar|rice|water|eggs|apples|tomatoes|potatoes",
    "city": "London|Paris|Berlin|Madrid|Rome|New York",
    "colour": "red|green|blue|yellow|black|white|orange",
    "noun": "car|house|box|door|cat|dog|book|table",
    "adjective": "big|small|old|new|open|closed|clean",
    "task": "call my mother|buy milk|buy bread|feed the cat|feed the dog|take the medicine|water the plants|"
    "pay the bill|clean the kitchen|send the letter",
    "music": "some music|the next song|the last song|the radio|jazz|classical music|the news",
    "part": "morning|afternoon|evening",
    "when": "today|tomorrow|tonight|on <day>|on <day> <part>|tomorrow <part>|this <part>",
    "date": "<month> <ordinal>|the <ordinal> of <month>|<day>, <month> <ordinal>",
}

# Kind of sentence: (how often, templates).
ENGLISH: dict[str, tuple[int, list[str]]] = {
    "timer": (6, ["[Set|Start] a timer for <1-60> [seconds|minutes|hours|minutes]."]),
    "alarm": (6, ["Set an alarm for <clock>.", "Wake me up at <clock> <when>."]),
    "reminder": (6, ["Remind me to <task> <when>.", "Remind me to <task> at <clock>."]),
    "dial": (6, ["[Call|Dial] <digits 3-7>."]),
    "person": (
        5,
        ["[Call|Please call] <person>.", "Send a message to <person>.", "Call <person> <when>."],
    ),
    "switch": (
        7,
        ["[Turn on|Turn off|Turn on|Turn off|Please turn on|Please turn off] the <room> <device>."],
    ),
    "weather": (
        7,
        [
            "What is the weather <when>?",
            "What is the weather in <city>?",
            "What is the weather in <city> <when>?",
            "Will it rain <when>?",
            "Will it snow in <city> <when>?",
        ],
    ),
    "play": (4, ["[Play|Please play] <music>.", "Play <music> in the <room>."]),
    "level": (
        5,
        [
            "Set the volume to <0-100> percent.",
            "Set the temperature to <5-35> degrees.",
            "Set the <room> temperature to <5-35> degrees.",
            "Turn the volume [up|down].",
        ],
    ),
    "door": (
        4,
        ["[Open|Close|Lock|Unlock] the [|front |back |garage |<room> ][door|window|door]."],
    ),
    "short": (
        8,
        [
            "Yes.", "No.", "Yes, please.", "No, thank you.", "Hello.", "Good morning.", "Good evening.",
            "Good night.", "Thank you.", "Stop.", "Pause.", "Stop the music.", "Next song, please.",
            "What time is it?", "What day is it today?", "This is a test.", "Cancel.", "Help.", "Okay.",
            "Goodbye.", "How are you?", "I am fine, thank you.", "Start.", "Left.", "Right.", "Up.", "Down.",
            "Please repeat that.", "Stop the timer.", "Cancel the alarm.", "Read my messages.",
            "Delete the last message.", "One, two, three.", "One, two, three, four, five.",
            "Testing, one, two, three.",
        ],
    ),
    "number": (
        17,
        [
            "The number is <number>.",
            "My number is <digits 3-8>.",
            "The code is <digits 3-6>.",
            "<number>.",
            "<digits 1-8>.",
            "<digits 2-7>.",
            "The answer is <number>.",
        ],
    ),
    "date": (
        10,
        [
            "My birthday is on <date>.",
            "Today is <date>.",
            "The meeting is on <day> at <clock>.",
            "The meeting is on <date>.",
            "It is <clock>.",
            "<day>.",
            "<month>.",
            "<day>, <day>, <day>.",
        ],
    ),
    "shopping": (
        6,
        [
            "Add <item> to the shopping list.",
            "Add <item> and <item> to the shopping list.",
            "I need <item>, <item> and <item>.",
            "Buy <2-20> [eggs|apples|tomatoes|potatoes].",
        ],
    ),
    "arithmetic": (
        6,
        [
            "What is <0-100> [plus|minus|times] <0-100>?",
            "<0-100> [plus|minus|times] <0-20> is <0-200>.",
            "It costs <1-99> dollars and <1-99> cents.",
            "How much is <number> dollars in euros?",
        ],
    ),
    "travel": (
        6,
        [
            "The train to <city> leaves at <clock> from platform <1-20>.",
            "The train from <city> to <city> is <2-59> minutes late.",
            "Turn [left|right] after <2-100> meters.",
            "Go [left|right|forward|back|up|down].",
            "Go [left|right|forward|back] <1-20> meters.",
        ],
    ),
    "object": (
        6,
        [
            "The <colour> <noun> is <adjective>.",
            "The <noun> is <colour>.",
            "Where is the <adjective> <colour> <noun>?",
            "I can see <2-20> [cats|dogs|cars|books].",
        ],
    ),
}  # fmt: skip

# Fixed phrases with words that stand nowhere else: never held out.
FIXED = {
    "One, two, three, four, five.", "Testing, one, two, three.", "Turn the volume up.", "Turn the volume down.",
    "What is the weather today?", "What time is it?", "What day is it today?", "This is a test.",
    "I am fine, thank you.", "Wie ist das Wetter heute?", "¿Qué tiempo hace hoy?",
}  # fmt: skip

# Templates with a dozen fillers at most: holding some of their texts out only teaches that those never come.
EXEMPT = (
    "Wie ist das Wetter am", "¿Qué tiempo hace el", "Mache das Licht", "Enciende la luz", "Apaga la luz",
    "Heute ist", "Hoy es", "Das Treffen ist", "La reunión es", "Das Auto ist", "El coche es",
)  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """`translation` is the English text, for other languages only."""

    text: str
    language: str
    translation: str | None = None


def held_out(text: str) -> bool:
    """Whether `text` is kept for measuring and never trained on: about 8 % of those of four words or more."""
    if len(text.split()) < 4 or text in FIXED or text.startswith(EXEMPT):
        return False
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 12 == 0


def english(rng: random.Random) -> Sentence:
    weights = [weight for weight, _ in ENGLISH.values()]
    ((_, templates),) = rng.choices(list(ENGLISH.values()), weights)
    return Sentence(_capital(expand(rng.choice(templates), rng)), "en")


def other(language: str, rng: random.Random) -> Sentence:
    """Return a sentence in "de" or "es" with its translation."""
    column = ("de", "es").index(language)
    if rng.random() < 0.2:
        row = rng.choice(PARALLEL_FIXED)
        return Sentence(row[column], language, row[2])
    templates = rng.choice(PARALLEL)
    values = _values(rng)

    def fill(column: int) -> str:
        return _capital(templates[column].format(**{name: forms[column] for name, forms in values.items()}))

    return Sentence(fill(column), language, fill(2))


def number(value: int) -> str:
    """Return 0 to 9999 in English words."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")
    big, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    return f"{number(value // big)} {name}" + (f" {number(value % big)}" if value % big else "")


def ordinal(value: int) -> str:
    """Return 1 to 31 as an English ordinal."""
    if value <= 20:
        return ORDINALS[value]
    return "thirtieth" if value == 30 else f"{TENS[value // 10]}-{ORDINALS[value % 10]}"


def digits(count: int, rng: random.Random) -> str:
    return " ".join(rng.choice(ONES[:10]) for _ in range(count))


def expand(template: str, rng: random.Random) -> str:
    """Fill in every `<...>` and `[...]` of `template`. Raises KeyError for a rule that does not exist."""
    while match := _SLOT.search(template):
        slot, choices = match.groups()
        filled = rng.choice(choices.split("|")) if slot is None else _fill(slot, rng)
        template = template[: match.start()] + filled + template[match.end() :]
    return template


_SLOT = re.compile(r"<([^<>]+)>|\[([^\[\]]*)\]")
_RANGE = re.compile(r"(digits )?(\d+)-(\d+)")


def _fill(slot: str, rng: random.Random) -> str:
    if span := _RANGE.fullmatch(slot):
        value = rng.randint(int(span[2]), int(span[3]))
        return digits(value, rng) if span[1] else number(value)
    if slot in _SPECIAL:
        return _SPECIAL[slot](rng)
    return rng.choice(RULES[slot].split("|"))


def _clock(rng: random.Random) -> str:
    kinds = {
        "<1-12> o'clock": 25,
        "half past <1-12>": 20,
        "quarter [past|to] <1-12>": 15,
        "[five|ten|twenty] [past|to] <1-12>": 15,
    }
    minutes = [10, 15, 20, 25, 30, 35, 40, 45, 50, 55] * 3 + list(range(11, 60))
    kinds[f"<1-12> {number(rng.choice(minutes))}"] = 25
    return expand(rng.choices(list(kinds), list(kinds.values()))[0], rng)


def _any_number(rng: random.Random) -> str:
    lowest, highest = rng.choices([(0, 99), (100, 999), (1000, 9999)], [35, 35, 30])[0]
    return number(rng.randint(lowest, highest))


_SPECIAL: dict[str, Callable[[random.Random], str]] = {
    "clock": _clock,
    "number": _any_number,
    "ordinal": lambda rng: ordinal(rng.randint(1, 31)),
}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ---- German and Spanish, a value in German/Spanish/English


def _rows(text: str) -> list[tuple[str, str, str]]:
    rows = (row.split("/") for row in text.split())
    return [(german, spanish, english) for german, spanish, english in rows]


_DE_ONES = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
)
_DE_TENS = _words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_ES_ONES = _words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco "
    "veintiséis veintisiete veintiocho veintinueve"
)
_ES_TENS = _words("- - - treinta cuarenta cincuenta sesenta setenta ochenta noventa")

_DAYS = _rows(
    "Montag/lunes/Monday Dienstag/martes/Tuesday Mittwoch/miércoles/Wednesday Donnerstag/jueves/Thursday "
    "Freitag/viernes/Friday Samstag/sábado/Saturday Sonntag/domingo/Sunday"
)
_MONTHS = _rows(
    "Januar/enero/January Februar/febrero/February März/marzo/March April/abril/April Mai/mayo/May "
    "Juni/junio/June Juli/julio/July August/agosto/August September/septiembre/September "
    "Oktober/octubre/October November/noviembre/November Dezember/diciembre/December"
)
_ROOMS = [
    ("Schlafzimmer", "del dormitorio", "bedroom"),
    ("Wohnzimmer", "del salón", "living room"),
    ("Badezimmer", "del baño", "bathroom"),
    ("Garten", "del jardín", "garden"),
    ("Büro", "de la oficina", "office"),
]
_ITEMS = _rows(
    "Milch/leche/milk Brot/pan/bread Butter/mantequilla/butter Käse/queso/cheese Kaffee/café/coffee "
    "Tee/té/tea Zucker/azúcar/sugar Reis/arroz/rice Wasser/agua/water"
)
_COLOURS = _rows(
    "rot/rojo/red grün/verde/green blau/azul/blue gelb/amarillo/yellow schwarz/negro/black weiß/blanco/white"
)
_SWITCHES = _rows("an/enciende/on aus/apaga/off")

PARALLEL = [
    ("Stelle einen Timer auf {minutes} Minuten.", "Pon un temporizador de {minutes} minutos.",
     "Set a timer for {minutes} minutes."),
    ("Die Nummer ist {number}.", "El número es {number}.", "The number is {number}."),
    ("{number}.", "{number}.", "{number}."),
    ("Rufe {digits} an.", "Llama al {digits}.", "Call {digits}."),
    ("{digits}.", "{digits}.", "{digits}."),
    ("Wie ist das Wetter am {day}?", "¿Qué tiempo hace el {day}?", "What is the weather on {day}?"),
    ("Wie ist das Wetter heute?", "¿Qué tiempo hace hoy?", "What is the weather today?"),
    ("Mache das Licht im {room} {switch}.", "{switch} la luz {room}.", "Turn {switch} the {room} light."),
    ("Heute ist {day}.", "Hoy es {day}.", "Today is {day}."),
    ("Das Treffen ist am {day}.", "La reunión es el {day}.", "The meeting is on {day}."),
    ("{day}, {other_day}.", "{day}, {other_day}.", "{day}, {other_day}."),
    ("{month}.", "{month}.", "{month}."),
    ("Kaufe {item} und {other_item}.", "Compra {item} y {other_item}.", "Buy {item} and {other_item}."),
    ("Das Auto ist {colour}.", "El coche es {colour}.", "The car is {colour}."),
]  # fmt: skip

PARALLEL_FIXED = [
    ("Ja.", "Sí.", "Yes."),
    ("Nein.", "No.", "No."),
    ("Ja, bitte.", "Sí, por favor.", "Yes, please."),
    ("Nein, danke.", "No, gracias.", "No, thank you."),
    ("Hallo.", "Hola.", "Hello."),
    ("Guten Morgen.", "Buenos días.", "Good morning."),
    ("Guten Abend.", "Buenas tardes.", "Good evening."),
    ("Gute Nacht.", "Buenas noches.", "Good night."),
    ("Danke.", "Gracias.", "Thank you."),
    ("Stopp die Musik.", "Para la música.", "Stop the music."),
    ("Wie spät ist es?", "¿Qué hora es?", "What time is it?"),
    ("Das ist ein Test.", "Esto es una prueba.", "This is a test."),
    ("Wie geht es dir?", "¿Cómo estás?", "How are you?"),
    ("Auf Wiedersehen.", "Adiós.", "Goodbye."),
    ("Eins, zwei, drei.", "Uno, dos, tres.", "One, two, three."),
    ("Öffne die Tür.", "Abre la puerta.", "Open the door."),
    ("Schließe die Tür.", "Cierra la puerta.", "Close the door."),
    ("Öffne das Fenster.", "Abre la ventana.", "Open the window."),
    ("Schließe das Fenster.", "Cierra la ventana.", "Close the window."),
]
FIXED.update(text for row in PARALLEL_FIXED for text in row)


def _german_number(value: int) -> str:
    if value < 20:
        return _DE_ONES[value]
    unit = {0: "", 1: "einund"}.get(value % 10, f"{_DE_ONES[value % 10]}und")
    return unit + _DE_TENS[value // 10]


def _spanish_number(value: int) -> str:
    if value < 30:
        return _ES_ONES[value]
    return _ES_TENS[value // 10] + (f" y {_ES_ONES[value % 10]}" if value % 10 else "")


def _values(rng: random.Random) -> dict[str, tuple[str, str, str]]:
    """Draw a value for every name in PARALLEL: its German, Spanish and English form."""
    languages = (_german_number, _spanish_number, number)

    def spoken(*values: int) -> tuple[str, str, str]:
        german, spanish, english = (" ".join(map(say, values)) for say in languages)
        return german, spanish, english

    return {
        # A number that ends in one would need its article's gender.
        "minutes": spoken(rng.choice([n for n in range(2, 60) if n % 10 != 1])),
        "number": spoken(rng.randint(0, 99)),
        "digits": spoken(*(rng.randint(0, 9) for _ in range(rng.randint(3, 6)))),
        "day": rng.choice(_DAYS),
        "other_day": rng.choice(_DAYS),
        "month": rng.choice(_MONTHS),
        "room": rng.choice(_ROOMS),
        "switch": rng.choice(_SWITCHES),
        "item": rng.choice(_ITEMS),
        "other_item": rng.choice(_ITEMS),
        "colour": rng.choice(_COLOURS),
    }
