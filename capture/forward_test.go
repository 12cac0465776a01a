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
