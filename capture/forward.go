package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// WayForward is Conn.Way of a connection that was caught by Forward.
const WayForward = "forward"

const (
	// unixPrefix marks the path of a unix socket among addresses.
	unixPrefix = "unix:"
	// maxUnixPath is the longest path of a unix socket (unix(7): sun_path of 108 bytes, with its NUL).
	maxUnixPath = 107
)

// Forward catches connections to a port whose destination is fixed in the configuration. The app does
// not know that there is a gateway: there is no handshake, and a refused flow is a reset connection.
type Forward struct {
	host   string
	addr   netip.Addr
	socket string
	port   uint16 // of the destination; of a range its first
	listen uint16 // the first port that is listened on, which leads to port; 0: every one leads there
}

var _ Way = (*Forward)(nil)

// NewForward returns the way to the destination to: "host:port", where host is a DNS name, an IPv4
// address, or an IPv6 address in brackets, and port is 1 to 65535; or "unix:/path", a socket on this host. Addresses
// have to be in their canonical form.
func NewForward(to string) (*Forward, error) {
	if path, ok := strings.CutPrefix(to, unixPrefix); ok {
		if what := unixPathProblem(path); what != "" {
			return nil, fmt.Errorf("destination %q: %s", clip(to), what)
		}
		return &Forward{socket: path}, nil
	}
	host, addr, port, err := parseHostPort(to)
	if err != nil {
		return nil, fmt.Errorf("destination %q: %w", clip(to), err)
	}
	return &Forward{host: host, addr: addr, port: port}, nil
}

// NewForwardRange returns the way of a listener on the ports from first on, n of them: to is "host:port", where all of
// them lead, or "host:from-to", with a port for each.
func NewForwardRange(first uint16, n int, to string) (*Forward, error) {
	base, last, isRange := cutRange(to)
	f, err := NewForward(base)
	if err != nil || !isRange {
		return f, err
	}
	end, err := parsePort(last)
	if err != nil {
		return nil, fmt.Errorf("destination %q: %w", clip(to), err)
	}
	if got := int(end) - int(f.port) + 1; got != n {
		return nil, fmt.Errorf("destination %q: it has %d ports, and the listener %d; both should have as many, or the destination one", clip(to), max(got, 0), n)
	}
	f.listen = first
	return f, nil
}

// cutRange cuts "host:from-to" into "host:from" and "to".
func cutRange(s string) (base, last string, isRange bool) {
	colon := strings.LastIndexByte(s, ':')
	dash := strings.LastIndexByte(s, '-')
	if strings.HasPrefix(s, unixPrefix) || dash < colon || colon < 0 {
		return s, "", false
	}
	return s[:dash], s[dash+1:], true
}

// unixPathProblem says why path is none of a unix socket, "" if it may be one.
func unixPathProblem(path string) string {
	switch {
	case !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@"):
		return "the path of a unix socket should be absolute, such as unix:/run/app.sock"
	case len(path) > maxUnixPath:
		return fmt.Sprintf("the path has %d bytes; that of a unix socket has at most %d", len(path), maxUnixPath)
	case path == "@":
		return "the name of an abstract unix socket is empty; it should be like unix:@app"
	case strings.ContainsRune(path, 0):
		return "the path has a NUL in it"
	}
	return ""
}

// CheckUnixPath says what is wrong with the path of a unix socket.
func CheckUnixPath(path string) error {
	if what := unixPathProblem(path); what != "" {
		return errors.New(what)
	}
	return nil
}

// Catch returns at once and does not fail.
func (f *Forward) Catch(nc net.Conn) (*Conn, error) {
	c := f.conn(addrPortOf(nc.LocalAddr()).Port())
	c.Conn = nc
	return c, nil
}

// conn makes a Conn of what came in on a port.
func (f *Forward) conn(at uint16) *Conn {
	c := &Conn{Way: WayForward, Host: f.host, Addr: f.addr, Socket: f.socket, Port: f.port}
	if f.listen != 0 {
		c.Port += at - f.listen
	}
	return c
}
