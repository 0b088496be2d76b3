"""Random access to the stored pictures of a download folder (`images/NNNNN.tar`)."""

import io
from pathlib import Path

from PIL import Image

from vlm_core.data.shards.tar import Member, members, read_member
from vlm_core.errors import BadManifest


class Pictures:
    """Pictures by uid. Reads the tars' headers once, and no picture before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.places: dict[str, tuple[Path, Member]] = {}
        for tar in sorted(folder.glob("*.tar")):
            self.places.update({member.name.removesuffix(".jpg"): (tar, member) for member in members(tar) if member.name.endswith(".jpg")})

    def read(self, uid: str) -> bytes:
        """Raises BadManifest when the picture is not there."""
        if uid not in self.places:
            raise BadManifest(f"Found no picture {uid}.jpg in the tars, expected one for every row with status ok; run 'vlm download' again.")
        tar, member = self.places[uid]
        with tar.open("rb") as stream:
            return read_member(stream, member)

    def image(self, uid: str) -> Image.Image:
        """Raises BadManifest when it cannot be decoded."""
        try:
            with Image.open(io.BytesIO(self.read(uid))) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise BadManifest(f"Found {uid}.jpg in {self.places[uid][0]} damaged ({error}), expected a picture; run 'vlm download' again.") from None
