"""The rows of a part: of all its pieces in order, with the caps that are counted while reading."""

from collections.abc import Iterator, Sequence

from sources.config import IngestConfig, Source
from sources.formats import read
from sources.opener import Opener
from sources.plan import Piece
from sources.rows import Document, Row


def rows_of(
    pieces: Sequence[Piece], sources: Sequence[Source], limits: IngestConfig, opener: Opener
) -> Iterator[tuple[Source, Piece, Row]]:
    """Every row of the pieces, in order. Of a source whose records are capped, all pieces must be here (sources.plan sees to it).

    Raises IntegrityError when a file is not the one that was planned; nothing for what a file holds.
    """
    documents, text_bytes, full = dict.fromkeys(range(len(sources)), 0), dict.fromkeys(range(len(sources)), 0), set()
    for piece in pieces:
        source = sources[piece.source]
        if piece.source in full:
            continue
        with opener.open(piece.file) as handle:
            for row in read(piece.file, source, limits, handle, piece.start, piece.end):
                if isinstance(row, Document) and piece.file.in_records:
                    documents[piece.source] += 1
                    text_bytes[piece.source] += len(row.text.encode())
                    if _over(source, documents[piece.source], text_bytes[piece.source], piece):
                        full.add(piece.source)
                        break
                yield source, piece, row


def _over(source: Source, documents: int, text_bytes: int, piece: Piece) -> bool:
    """Whether the document just counted is one too many. Questions are capped in bytes of the files they come from."""
    if source.max_documents is not None and documents > source.max_documents:
        return True
    return source.max_bytes is not None and piece.file.form != "questions" and text_bytes > source.max_bytes
