package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Values of SOCKS4 ("SOCKS: A protocol for TCP proxy across firewalls", Ying-Da Lee) and of its extension 4A.
const (
	socks4Version  = 0x04
	socks4Connect  = 0x01
	socks4Granted  = 0x5A // 90
	socks4Rejected = 0x5B // 91: "request rejected or failed"
	// maxSocks4Text is the longest user ID that is taken, and the longest name: as in SOCKS5.
	maxSocks4Text = 255
)

// request4 reads the request of a SOCKS4 or 4A client: VN CD DSTPORT DSTIP USERID NUL, and with 4A, which an address of
// 0.0.0.x with another x than 0 tells, a name and NUL. There is no login in it, so a listener with users takes none.
func (h *handshake) request4() (*Conn, *HandshakeError) {
	const what = "SOCKS4 request"
	if h.way.users != nil {
		return nil, h.refuse4(h.fail(CauseAuth, "the client speaks SOCKS4, which has no login", "the listener has users: the app should use SOCKS5"))
	}
	const fixed = 1 + 1 + 2 + 4
	if !h.need(fixed) {
		return nil, h.broken(what)
	}
	head := [fixed]byte(h.unread()[:fixed])
	h.off += fixed
	if _, failed := h.text4(what, "user ID"); failed != nil {
		return nil, failed
	}
	if command := head[1]; command != socks4Connect {
		return nil, h.refuse4(h.fail(CauseCommand, commandName(command), "the listener does CONNECT only"))
	}
	c := &Conn{Conn: h.nc, Way: WaySocks5, answer: socks4Answer{}, Port: binary.BigEndian.Uint16(head[2:4])}
	addr := [4]byte(head[4:])
	if [3]byte(addr[:3]) == [3]byte{} && addr[3] != 0 {
		name, failed := h.text4(what, "name")
		if failed != nil {
			return nil, failed
		}
		var err error
		if c.Host, c.Addr, err = parseHost(name); err != nil {
			return nil, h.refuse4(h.fail(CauseDestination, fmt.Sprintf("destination %q: %v", clip(name), err), ""))
		}
	} else {
		c.Addr = netip.AddrFrom4(addr)
	}
	if c.Port == 0 {
		return nil, h.refuse4(h.fail(CauseDestination, "destination with port 0", "it should be 1 to 65535"))
	}
	return c, nil
}

// text4 reads bytes up to a NUL.
func (h *handshake) text4(what, field string) (string, *HandshakeError) {
	for n := 1; ; n++ {
		if !h.need(n) {
			return "", h.broken(what)
		}
		if i := bytes.IndexByte(h.unread(), 0); i >= 0 {
			text := string(h.unread()[:i])
			h.off += i + 1
			if len(text) > maxSocks4Text {
				break
			}
			return text, nil
		}
		if n = len(h.unread()); n > maxSocks4Text {
			break
		}
	}
	return "", h.refuse4(h.fail(CauseProtocol, "the "+field+" is longer than 255 bytes", "the client should send a shorter one"))
}

// refuse4 sends a SOCKS4 reply; see reply.
func (h *handshake) refuse4(failed *HandshakeError) *HandshakeError {
	_ = writeReply4(h.nc, socks4Rejected) // as in refuse
	return failed
}

// socks4Answer tells a SOCKS4 client what became of its request. There is one word for every no.
type socks4Answer struct{}

func (socks4Answer) accepted(nc net.Conn) error { return writeReply4(nc, socks4Granted) }

func (socks4Answer) refused(nc net.Conn, _ Refusal) error { return writeReply4(nc, socks4Rejected) }

// writeReply4 sends VN CD DSTPORT DSTIP, of which a client is to ignore all but CD.
func writeReply4(nc net.Conn, code byte) error {
	_, err := nc.Write([]byte{0, code, 0, 0, 0, 0, 0, 0})
	return err
}
