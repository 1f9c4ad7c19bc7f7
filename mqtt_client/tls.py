"""TLS to a broker."""

import ssl
from typing import Final

from mqtt_client.errors import TlsUnusable
from wire_protocol.address import BrokerAddress

SETTINGS: Final = "See STOCKTIDE_MQTT_CA_FILE, STOCKTIDE_MQTT_CERT_FILE and STOCKTIDE_MQTT_KEY_FILE."


def client_context(
    address: BrokerAddress,
    ca_file: str | None,
    cert_file: str | None = None,
    key_file: str | None = None,
    *,
    hint: str = SETTINGS,
) -> ssl.SSLContext | None:
    """For `mqtts://`: trusting these authorities, or the system's; with a certificate of our own if there is one.

    `hint` says where the files are named, for the error.

    Raises:
        TlsUnusable: a file cannot be used, or a certificate is to be shown without TLS.
    """
    if not address.tls:
        if cert_file is not None:
            raise TlsUnusable("A certificate is shown over TLS only.", hint="Use an mqtts:// address.")
        if ca_file is not None:
            why = f"{address!r} is spoken to without TLS, although authorities are given for it: {ca_file}."
            raise TlsUnusable(why, hint="Use an mqtts:// address, or give no file of authorities.")
        return None
    try:
        made = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            made.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise TlsUnusable(f"The TLS files for {address!r} cannot be used: {error}.", hint=hint) from None
    return made
