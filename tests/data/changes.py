"""Damages the bytes of a file, for the tests in which Hypothesis tries to break a reader."""

from hypothesis import strategies as st


def changed(draw, content, head=0):
    """Returns the bytes with up to four numbers changed, and perhaps cut off or longer.

    head: the length of a header, which is changed as often as all the rest
    """
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        anywhere = st.integers(0, len(content) - 1)
        place = draw(st.one_of(st.integers(0, head - 1), anywhere) if head else anywhere)
        width = draw(st.sampled_from((1, 4)))
        number = draw(st.one_of(st.integers(0, 20), st.integers(0, 256**width - 1)))
        content[place : place + width] = (number % 256**width).to_bytes(width, "little")
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content)))]
    return content + draw(st.binary(max_size=9))
