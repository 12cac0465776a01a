package tunnel

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"culvert/capture"
	"culvert/pki/spiffe"
)

// markOf is the mark of a connection.
func markOf(t *testing.T, nc net.Conn) (mark int) {
	t.Helper()
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return mark
}

// What the process connects to for itself is not captured again; where nothing is captured it is left as it is.
func TestDialOwn(t *testing.T) {
	self, err := spiffe.New("cluster.local", "default", "gw")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	probe, _ := tcpPair(t)
	raw, err := probe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	markOwn(raw, capture.MarkOwn)
	may := markOf(t, probe) // 0 without the privilege
	for _, tt := range []struct {
		kind string
		want int
	}{{KindRedirect, may}, {KindSOCKS5, 0}} {
		g, err := New(&Config{Listeners: []ListenerConfig{{Name: "a", Kind: tt.kind, Address: "127.0.0.1:1"}}}, Env{Self: func() spiffe.ID { return self }})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := g.DialOwn(t.Context(), "tcp", "localhost:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if got := markOf(t, nc); got != tt.want {
			t.Errorf("with a %s listener the mark is %#x, want %#x", tt.kind, got, tt.want)
		}
		nc.Close()
		g.Close()
	}
}
