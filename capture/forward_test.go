package capture

import (
	"io"
	"net/netip"
	"strings"
	"testing"
)

func TestForward(t *testing.T) {
	for _, tt := range []struct{ name, to, host, addr string }{
		{"name", "Orders.shop.svc:80", "orders.shop.svc", ""},
		{"IPv4", "192.0.2.1:80", "", "192.0.2.1"},
		{"IPv6", "[2001:db8::1]:80", "", "2001:db8::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			way, err := NewForward(tt.to)
			if err != nil {
				t.Fatalf("NewForward = %v, want nil", err)
			}
			client, server := tcpPair(t)
			c, err := way.Catch(server)
			if err != nil {
				t.Fatalf("Catch = %v, want nil", err)
			}
			want := netip.Addr{}
			if tt.addr != "" {
				want = netip.MustParseAddr(tt.addr)
			}
			if c.Way != "forward" || c.Host != tt.host || c.Addr != want || c.Port != 80 || c.User != "" {
				t.Errorf("Catch = way %q, host %q, addr %v, port %d, user %q", c.Way, c.Host, c.Addr, c.Port, c.User)
			}
			if c.NetConn() != server {
				t.Errorf("NetConn = %T, want the accepted connection", c.NetConn())
			}
			if err := c.Accepted(); err != nil {
				t.Errorf("Accepted = %v, want nil", err)
			}
			c.Close()
			if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("client of an accepted flow reads %d, %v, want 0, EOF", n, err)
			}
		})
	}
	t.Run("refused is a reset", func(t *testing.T) {
		way, err := NewForward("a.example:80")
		if err != nil {
			t.Fatal(err)
		}
		client, server := tcpPair(t)
		c, err := way.Catch(server)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Refused(ConnectionRefused); err != nil {
			t.Errorf("Refused = %v, want nil", err)
		}
		wantReset(t, client)
	})
	t.Run("refused in memory is closed", func(t *testing.T) {
		client, server := pipePair(t)
		if err := (&Conn{Conn: server}).Refused(General); err != nil {
			t.Errorf("Refused = %v, want nil", err)
		}
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("client reads %v, want EOF", err)
		}
	})
}

func TestNewForwardRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, to string
		want     []string
	}{
		{"nothing", "", []string{"port is missing"}},
		{"no port", "a.example", []string{"port is missing", "host:port"}},
		{"empty port", "a.example:", []string{"1 to 65535"}},
		{"port 0", "a.example:0", []string{"1 to 65535"}},
		{"port too great", "a.example:65536", []string{"1 to 65535"}},
		{"port that wraps to 80", "a.example:4294967376", []string{"1 to 65535"}},
		{"port with a sign", "a.example:+80", []string{"1 to 65535"}},
		{"negative port", "a.example:-80", []string{"1 to 65535"}},
		{"port with a leading zero", "a.example:080", []string{"1 to 65535"}},
		{"named port", "a.example:http", []string{"1 to 65535"}},
		{"port with a space", "a.example: 80", []string{"1 to 65535"}},
		{"hexadecimal port", "a.example:0x50", []string{"1 to 65535"}},
		{"port with underscores", "a.example:8_0", []string{"1 to 65535"}},
		{"no host", ":80", []string{"host is empty"}},
		{"empty brackets", "[]:80", []string{"brackets"}},
		{"IPv6 without brackets", "2001:db8::1:80", []string{"in brackets"}},
		{"IPv6 without port", "2001:db8::1", []string{"in brackets"}},
		{"IPv6 in brackets without port", "[2001:db8::1]", []string{"1 to 65535"}},
		{"IPv4 in brackets", "[192.0.2.1]:80", []string{"only an IPv6 address"}},
		{"name in brackets", "[a.example]:80", []string{"only an IPv6 address"}},
		{"zone", "[fe80::1%lo]:80", []string{"zone"}},
		{"IPv6 not canonical", "[2001:DB8::1]:80", []string{"written as 2001:db8::1"}},
		{"spelled address", "0x7f.1:80", []string{"ends in a number"}},
		{"URL", "http://a.example:80", []string{"should"}},
		{"user", "me@a.example:80", []string{"the byte '@'"}},
		{"not ASCII", "é.example:80", []string{"xn--"}},
		{"all at once", "a b:0", []string{"the byte ' '", "1 to 65535"}},
		{"very long", strings.Repeat("a", 1<<16) + ":80", []string{"at most 253", "…"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewForward(tt.to)
			if err == nil {
				t.Fatalf("NewForward(%q) = nil, want an error", tt.to)
			}
			if len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("NewForward(%q) = %q, want it to contain %q", clip(tt.to), err, want)
				}
			}
		})
	}
}

func TestNewForwardRange(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first uint16
		n     int
		to    string
		ports map[uint16]uint16 // where what comes in at a port leads
	}{
		{"all to one", 8000, 3, "a.example:80", map[uint16]uint16{8000: 80, 8002: 80}},
		{"each to its own", 8000, 3, "a.example:9000-9002", map[uint16]uint16{8000: 9000, 8001: 9001, 8002: 9002}},
		{"downwards", 9000, 2, "a.example:80-81", map[uint16]uint16{9000: 80, 9001: 81}},
		{"the last ports", 1, 2, "a.example:65534-65535", map[uint16]uint16{1: 65534, 2: 65535}},
		{"all ports", 1, 65535, "a.example:1-65535", map[uint16]uint16{1: 1, 65535: 65535}},
		{"a range of one", 8000, 1, "a.example:80-80", map[uint16]uint16{8000: 80}},
		{"a name with a hyphen", 8000, 2, "a-b.example:80", map[uint16]uint16{8000: 80, 8001: 80}},
		{"a name with a hyphen, each", 8000, 2, "a-b.example:80-81", map[uint16]uint16{8001: 81}},
		{"IPv6", 8000, 2, "[2001:db8::1]:80-81", map[uint16]uint16{8001: 81}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			way, err := NewForwardRange(tt.first, tt.n, tt.to)
			if err != nil {
				t.Fatalf("NewForwardRange = %v, want nil", err)
			}
			for at, want := range tt.ports {
				if c := way.conn(at); c.Port != want || c.Way != WayForward || (c.Host == "") != c.Addr.IsValid() {
					t.Errorf("what comes to %d goes to host %q, addr %v, port %d, want port %d", at, c.Host, c.Addr, c.Port, want)
				}
			}
		})
	}
	for _, tt := range []struct {
		name string
		n    int
		to   string
		want string
	}{
		{"too few", 3, "a.example:80-81", "it has 2 ports, and the listener 3"},
		{"too many", 1, "a.example:80-81", "it has 2 ports, and the listener 1"},
		{"backwards", 3, "a.example:82-80", "it has 0 ports"},
		{"port 0", 2, "a.example:0-1", "1 to 65535"},
		{"too great", 2, "a.example:65535-65536", "1 to 65535"},
		{"no first", 2, "a.example:-81", "1 to 65535"},
		{"no last", 2, "a.example:80-", "1 to 65535"},
		{"two dashes", 2, "a.example:80-81-82", "1 to 65535"},
		{"no port", 2, "a-b.example", "port is missing"},
		{"IPv6 without brackets", 2, "2001:db8::1:80-81", "in brackets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewForwardRange(8000, tt.n, tt.to); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.to[:5]) {
				t.Errorf("NewForwardRange(%d, %q) = %v, want an error that has %q", tt.n, tt.to, err, tt.want)
			}
		})
	}
}

func TestForwardToUnixSocket(t *testing.T) {
	for _, path := range []string{"/run/app.sock", "/run/a-b:80-81", "@app", "@a-b:80-81", "/" + strings.Repeat("a", maxUnixPath-1)} {
		way, err := NewForwardRange(8000, 2, "unix:"+path)
		if err != nil {
			t.Errorf("NewForwardRange(unix:%s) = %v, want nil", path, err)
			continue
		}
		if err := CheckUnixPath(path); err != nil {
			t.Errorf("CheckUnixPath(%s) = %v, want nil", path, err)
		}
		_, server := tcpPair(t)
		c, err := way.Catch(server)
		if err != nil || c.Socket != path || c.Host != "" || c.Addr.IsValid() || c.Port != 0 {
			t.Errorf("Catch = %+v, %v, want it to lead to %s", c, err, path)
		}
	}
	for _, tt := range []struct{ path, want string }{
		{"", "absolute"},
		{"run/app.sock", "absolute"},
		{"./app.sock", "absolute"},
		{"@", "empty"},
		{"/a\x00b", "NUL"},
		{"/" + strings.Repeat("a", maxUnixPath), "at most 107"},
	} {
		_, err := NewForward("unix:" + tt.path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "destination ") {
			t.Errorf("NewForward(unix:%q) = %v, want an error that has %q", clip(tt.path), err, tt.want)
		}
		if err := CheckUnixPath(tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("CheckUnixPath(%q) = %v, want an error that has %q", clip(tt.path), err, tt.want)
		}
	}
}
