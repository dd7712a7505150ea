"""The languages that Whisper knows: codes and English names, in the order of the model's language tokens."""

from __future__ import annotations

import re

from whisperlib.errors import OptionError

# g_lang in whisper.cpp's src/whisper.cpp (OpenAI's whisper/tokenizer.py); "yue" exists from large-v3 on.
LANGUAGES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}

_CODES_BY_NAME = {name: code for code, name in LANGUAGES.items()}
# OpenAI's names beside the first ones (TO_LANGUAGE_CODE in whisper/tokenizer.py).
_CODES_BY_NAME |= {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}


# A code, perhaps with script and region: "de-AT", "zh-Hant-TW".
_TAG = re.compile(r"([a-z]{2,3})(?:-[a-z]{4})?(?:-(?:[a-z]{2}|\d{3}))?")
# Codes in use for languages that Whisper knows by another one.
_OTHER_CODES = {"fil": "tl", "iw": "he", "jv": "jw", "nb": "no"}


def language_code(language: str | None) -> str | None:
    """Turn a code (`"de"`), a regional tag (`"de-AT"`) or an English name (`"German"`) into a code.

    None, `""` and `"auto"` give None: detect it. Raises OptionError for anything else.
    """
    if language is None:
        return None
    wanted = language.strip().lower().replace("_", "-")
    if wanted in {"", "auto"}:
        return None
    code = _CODES_BY_NAME.get(wanted, "")
    if not code and (tag := _TAG.fullmatch(wanted)):
        code = _OTHER_CODES.get(tag[1], tag[1])
    if code not in LANGUAGES:
        raise OptionError(
            f"unknown language {language[:40]!r}: give a code such as 'en' or 'de', an English name, or 'auto'"
        )
    return code
