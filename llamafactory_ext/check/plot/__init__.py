"""Pictures of series with their labelled intervals: contact sheets in PNG, and one page with all that is known.

`gallery.draw_gallery` writes both. Series are thinned for drawing only; labels are placed by their real index.
"""

from .gallery import Gallery, draw_gallery


__all__ = ["Gallery", "draw_gallery"]
