package proc

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Established lists the ports of the peers that have a connection with a server of this host at addr, an IPv4 address.
func Established(addr string) (peers []int, err error) {
	local, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line) // its number, the own address, the peer's, the state: 1 is ESTABLISHED
		if len(fields) < 4 || fields[3] != "01" {
			continue
		}
		own, err := kernelAddr(fields[1])
		if err != nil {
			return nil, err
		}
		if peer, err := kernelAddr(fields[2]); err == nil && own == local {
			peers = append(peers, int(peer.Port()))
		}
	}
	return peers, nil
}

// kernelAddr reads an address as /proc/net/tcp has it: as a number in the byte order of the machine, and the port.
func kernelAddr(text string) (netip.AddrPort, error) {
	ip, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(ip)
	if err != nil || len(raw) != 4 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address of /proc/net/tcp", text)
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], binary.BigEndian.Uint32(raw))
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(netip.AddrFrom4(b), uint16(n)), err
}
