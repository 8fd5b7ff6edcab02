"""Classify IP addresses as public, private or metadata, by tables of this package's own.

Python's ``is_global`` changes from version to version, and calls multicast, site-local and IPv4-compatible addresses
global: https://nvd.nist.gov/vuln/detail/CVE-2024-4032
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry, with multicast and what is reserved. The few entries
# that are globally reachable (AS112, AMT, anycast of PCP and TURN) serve no images.
_NOT_PUBLIC_V4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)
# https://www.iana.org/assignments/ipv6-address-space: only this is global unicast,
_PUBLIC_V6 = "2000::/3"
# without https://www.iana.org/assignments/iana-ipv6-special-registry. Teredo lies in 2001::/23.
_NOT_PUBLIC_V6 = ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")

_LINK_LOCAL = ("169.254.0.0/16", "fe80::/10")
# Clouds' metadata services, which return a machine's keys, beyond link-local addresses.
_METADATA = (
    "100.100.100.200/32",  # https://www.alibabacloud.com/help/en/ens/instance-metadata
    "100.96.0.96/32",  # https://docs.byteplus.com/en/docs/ecs/Viewing-instance-metadata
    "168.63.129.16/32",  # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    "192.0.0.192/32",  # Oracle Cloud's first generation
    "fd00:ec2::/32",  # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    "fd20:ce::/32",  # https://cloud.google.com/compute/docs/metadata/querying-metadata
    "fd00:c1::/32",  # https://docs.oracle.com/iaas/Content/Compute/Tasks/gettingmetadata.htm
    "fd00:42::42/128",  # https://www.scaleway.com/en/docs/instances/how-to/use-cloud-init
    "fd00:a9fe:a9fe::/48",  # https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api
)
# Each site chooses its translators' prefixes, so these are found at every place of an IPv6 address.
_METADATA_HOSTS = (
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.42.42",
    "169.254.0.23",
    "100.100.100.200",
    "100.96.0.96",
    "168.63.129.16",
    "192.0.0.192",
)


def _networks(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_not_public, _public_v6 = _networks((*_NOT_PUBLIC_V4, *_NOT_PUBLIC_V6)), ipaddress.IPv6Network(_PUBLIC_V6)
_metadata = _networks((*_LINK_LOCAL, *_METADATA))
_metadata_hosts = frozenset(ipaddress.IPv4Address(text) for text in _METADATA_HOSTS)

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # RFC 4291
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # RFC 3056
_TEREDO = ipaddress.IPv6Network("2001::/32")  # RFC 4380
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the first half of an interface's name


def is_metadata(address: str) -> bool:
    """Return whether an address, or an IPv4 address in it, is link-local or a metadata service's.

    Examples
    --------
    >>> [is_metadata(text) for text in ("169.254.169.254", "64:ff9b:1::a9fe:a9fe", "fd20:ce::254", "192.168.0.1")]
    [True, True, True, False]
    """
    ip = _parse(address)
    if any(_is_in(one, _metadata) for one in (ip, *_embedded(ip))):
        return True
    return isinstance(ip, ipaddress.IPv6Address) and not _metadata_hosts.isdisjoint(_rfc6052(ip))


def is_public(address: str) -> bool:
    """Return whether an address is one of the public Internet, and every IPv4 address in it too.

    Examples
    --------
    >>> [is_public(text) for text in ("93.184.216.34", "::ffff:93.184.216.34", "::ffff:10.0.0.1", "ff02::1")]
    [True, True, False, False]
    """
    ip = _parse(address)
    reached: list[IPAddress] = list(_embedded(ip))
    if isinstance(ip, ipaddress.IPv4Address) or not (ip in _MAPPED or ip in _NAT64):
        reached.append(ip)  # a mapped address and a translated one reach the IPv4 address alone
    return all(_is_public(one) for one in reached)


def _parse(address: str) -> IPAddress:
    return ipaddress.ip_address(address.partition("%")[0])  # a zone follows the %


def _is_public(ip: IPAddress) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _public_v6:
        return False
    return not _is_in(ip, _not_public)


def _is_in(ip: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)


def _embedded(ip: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses that packets to an IPv6 address may reach."""
    if isinstance(ip, ipaddress.IPv4Address):
        return
    bits = int(ip)
    if any(ip in network for network in (_MAPPED, _COMPATIBLE, _TRANSLATED, _NAT64)):
        yield _v4(bits)
    elif ip in _NAT64_LOCAL:
        yield from _rfc6052(ip)
    elif ip in _SIX_TO_FOUR:
        yield _v4(bits >> 80)
    elif ip in _TEREDO:
        yield from (_v4(bits >> 64), _v4(~bits))  # the server, and the client under a mask
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        yield _v4(bits)


def _rfc6052(ip: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 address for each length of a translator's prefix, which leaves out the bits 64 to 71."""
    bits = int(ip)
    around = (bits >> 64) << 56 | bits & (1 << 56) - 1  # the 120 bits that are left
    for prefix in (32, 40, 48, 56, 64):
        yield _v4(around >> (120 - 32 - prefix))
    yield _v4(bits)


def _v4(bits: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bits & 0xFFFFFFFF)
