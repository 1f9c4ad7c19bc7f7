"""Addresses that are assumed when none is set; apart, so that the command line need not load the settings."""

from typing import Final

DATABASE_URL: Final = "postgresql://postgres@127.0.0.1:5432/stocktide"
MQTT_URL: Final = "mqtt://127.0.0.1:1883"
