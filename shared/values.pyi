def check_values(frame: bytes, most: int) -> None:
    """ProtocolError unless `frame` is one whole MessagePack value, and it and all that is nested in it are at
    most `most` values. Makes no object.
    """
