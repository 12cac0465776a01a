package datagram

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// What the socket refuses is not counted as sent: here a datagram that is longer than a packet may be.
func TestDroppedBytes(t *testing.T) {
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6loopback})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			nc, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := nc.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1) }); err != nil {
				t.Fatal(err)
			}
			c := make(nc, nil, new(Room).For("peer"))
			defer c.Close()
			if _, err := c.Write(append(capsule("short"), capsule(string(make2(MaxPayload)))...)); err != nil {
				t.Fatal(err)
			}
			if s := c.Stats(); s.Sent.Load() != 1 || s.SentBytes.Load() != 5 || s.Dropped.Load() != 1 {
				t.Errorf("sent %d of %d bytes and dropped %d, want 1 of 5 and 1", s.Sent.Load(), s.SentBytes.Load(), s.Dropped.Load())
			}
		})
	}
}
