"""Where frames come from: images, folders, videos, cameras, network streams."""

from m2h_deploy.sources.source import (
    VIDEOS,
    Item,
    Skipped,
    Source,
    SourceFrame,
    folder_images,
    open_source,
    read_item,
    result_name,
    without_password,
)

__all__ = [
    "VIDEOS",
    "Item",
    "Skipped",
    "Source",
    "SourceFrame",
    "folder_images",
    "open_source",
    "read_item",
    "result_name",
    "without_password",
]
