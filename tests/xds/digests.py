"""What `xds/digest.lua` should do, written for reading and not for speed."""

import json

BOUNDARIES = (*range(1024, 8193, 1024), 12288, 18432, 27648, 41472, 62208)
RANKS = ("prompt", "messages", "input")


def extend(state, data):
    """32-bit state after `data`: little-endian words of four bytes, then single bytes."""
    whole = len(data) - len(data) % 16
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, whole, 4)]
    for word in (*words, *data[whole:]):
        mixed = state ^ word
        mixed = (mixed << 13 | mixed >> 19) & 0xFFFFFFFF
        state = (mixed * 5 + 0x6546B64) & 0xFFFFFFFF
    return state


def digests(prompt):
    state, start, out = 0, 0, []
    for boundary in BOUNDARIES:
        end = min(boundary, len(prompt))
        state = extend(state, prompt[start:end])
        out.append(f"{state:08x}")
        start = end
        if end == len(prompt):
            break
    return out


def headers(body, prompt, model):
    """The headers for a body with this prompt (its raw JSON, or None) and model."""
    made = {}
    if model is not None and (not model or len(model.encode()) > 256 or has_control(model)):
        model = None
    key = "00000000" if model is None else f"{extend(0, model.encode()):08x}"
    if model is not None:
        made["x-gateway-model-name"] = model
        made["x-weir-affinity"] = key
    if prompt is not None:
        found = digests(prompt)
        made["x-weir-digest"] = f"v1;{len(body)};{len(prompt)};{'.'.join(found)}"
        made["x-weir-affinity"] = f"{key};{found[0]}"
    return made


def has_control(text):
    return any(ord(char) < 32 or ord(char) == 127 for char in text)


def of_document(document, *, separators, ascii_only):
    """A JSON body of `document`, and the headers that it should get."""
    dumped = {
        key: json.dumps(value, ensure_ascii=ascii_only, separators=separators)
        for key, value in document.items()
    }
    colon, comma = separators[1], separators[0]
    keys = {key: json.dumps(key, ensure_ascii=ascii_only) for key in document}
    body = "{" + comma.join(f"{keys[key]}{colon}{text}" for key, text in dumped.items()) + "}"
    prompt = next(
        (dumped[key] for key in RANKS if isinstance(document.get(key), str | list | dict)), None
    )
    model = document.get("model")
    raw = body.encode()
    return raw, headers(
        raw,
        None if prompt is None else prompt.encode(),
        model if isinstance(model, str) else None,
    )
