package capture

import (
	"cmp"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// exchange is one handshake as its client sees it.
type exchange struct {
	name  string
	users map[string]Password
	steps []step // all but the last are answered while the handshake goes on

	// of a handshake that succeeds
	host, user string
	addr       string
	port       uint16
	// of one that fails: the last step's reply is followed by the end of the connection
	cause Cause
	text  []string

	granted string // what the client hears when the flow stands; "" is the reply of RFC 1928
}

// step is what a client says and the reply it must hear to it.
type step struct{ say, hear string }

// transports are the connections that every exchange is tried on.
var transports = []struct {
	name string
	pair func(testing.TB) (client, server net.Conn)
	slow bool
}{
	{"in memory", pipePair, false},
	{"byte by byte", pipePair, true},
	{"loopback", tcpPair, false},
	{"loopback byte by byte", tcpPair, true},
}

// runExchanges tries every exchange on every transport.
func runExchanges(t *testing.T, exchanges []exchange) {
	for _, ex := range exchanges {
		for _, tr := range transports {
			t.Run(ex.name+"/"+tr.name, func(t *testing.T) {
				client, server := tr.pair(t)
				ex.run(t, &app{t: t, conn: client, slow: tr.slow}, server)
			})
		}
	}
}

func (ex *exchange) run(t *testing.T, a *app, server net.Conn) {
	way := newSocks5(t, Socks5Config{Users: ex.users})
	result := catchLater(way, server)
	for i, s := range ex.steps {
		wait := a.say(s.say)
		if i == len(ex.steps)-1 && ex.cause != "" {
			a.hearsLast(s.hear)
			a.conn.Close()
			wait()
			wantFailure(t, <-result, ex.cause, append(ex.text, "socks5 handshake with "+server.RemoteAddr().String())...)
			return
		}
		a.hears(s.hear)
		if i < len(ex.steps)-1 {
			wait()
		}
	}
	got := <-result
	if got.err != nil {
		t.Fatalf("Catch = %v, want nil", got.err)
	}
	ex.check(t, got.conn)
	// Not a byte may have been sent to the client before the flow stands.
	stands := make(chan error, 1)
	// Ends when the client has heard the reply; waited for on stands.
	go func() { stands <- got.conn.Accepted() }()
	a.hears(cmp.Or(ex.granted, said(0)))
	if err := <-stands; err != nil {
		t.Errorf("Accepted = %v, want nil", err)
	}
	got.conn.Close()
	a.hearsLast("")
}

func (ex *exchange) check(t *testing.T, c *Conn) {
	t.Helper()
	want := Conn{Host: ex.host, Port: ex.port, User: ex.user}
	if ex.addr != "" {
		want.Addr = netip.MustParseAddr(ex.addr)
	}
	if c.Way != "socks5" || c.Host != want.Host || c.Addr != want.Addr || c.Port != want.Port || c.User != want.User {
		t.Errorf("Catch = way %q, host %q, addr %v, port %d, user %q, want socks5, %q, %v, %d, %q",
			c.Way, c.Host, c.Addr, c.Port, c.User, want.Host, want.Addr, want.Port, want.User)
	}
}

// RFC 1928, section 3: "The server selects from one of the methods given in METHODS, and sends a METHOD
// selection message. … If the selected METHOD is X'FF', none of the methods listed by the client are
// acceptable, and the client MUST close the connection."
func TestRFC1928Section3Methods(t *testing.T) {
	every := make([]byte, 255)
	for i := range every {
		every[i] = byte(i)
	}
	const addr = "192.0.2.1"
	runExchanges(t, []exchange{
		{name: "no login offered, none needed", steps: []step{{greetNone, choseNone}, {connectAddr, ""}}, addr: addr, port: 80},
		{name: "both offered, none needed", steps: []step{{greetBoth, choseNone}, {connectAddr, ""}}, addr: addr, port: 80},
		{name: "both offered in the other order", steps: []step{{"\x05\x02\x02\x00", choseNone}, {connectAddr, ""}}, addr: addr, port: 80},
		{name: "255 methods", steps: []step{{"\x05\xff" + string(every), choseNone}, {connectAddr, ""}}, addr: addr, port: 80},
		{name: "the same method 255 times", steps: []step{{"\x05\xff" + strings.Repeat("\x00", 255), choseNone}, {connectAddr, ""}}, addr: addr, port: 80},
		{name: "login offered, none needed", steps: []step{{greetLogin, choseNo}}, cause: CauseAuth, text: []string{"insists on logging in", "no users"}},
		{name: "GSSAPI only", steps: []step{{"\x05\x01\x01", choseNo}}, cause: CauseAuth},
		{name: "no method", steps: []step{{"\x05\x00", choseNo}}, cause: CauseAuth},
		{name: "X'FF' offered as a method", steps: []step{{"\x05\x01\xff", choseNo}}, cause: CauseAuth},

		{name: "login needed, not offered", users: bob, steps: []step{{greetNone, choseNo}}, cause: CauseAuth, text: []string{"does not offer to log in"}},
		{name: "login needed, not offered, request sent all the same", users: bob, steps: []step{{greetNone + connectAddr, choseNo}}, cause: CauseAuth},
		{name: "login needed, no method", users: bob, steps: []step{{"\x05\x00", choseNo}}, cause: CauseAuth},
		{name: "login needed, offered after none", users: bob, steps: []step{{greetBoth, choseLogin}, {loginBob, loginGood}, {connectAddr, ""}},
			addr: addr, port: 80, user: "bob"},
	})
}

// RFC 1928, section 3: "The VER field is set to X'05' for this version of the protocol."
func TestRFC1928Section3Version(t *testing.T) {
	no := func(first string) []step { return []step{{first, choseNo}} }
	do := "the listener speaks SOCKS5"
	runExchanges(t, []exchange{
		{name: "TLS", steps: no("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), cause: CauseProtocol, text: []string{"this is a TLS client", do}},
		{name: "zero", steps: no("\x00\x00\x00"), cause: CauseProtocol, text: []string{"this is no SOCKS5 greeting (it begins with 00", do}},
		{name: "version 6", steps: no("\x06\x01\x00"), cause: CauseProtocol},
		{name: "GET", steps: no("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), cause: CauseProtocol, text: []string{"this is an HTTP request", do}},
		{name: "CONNECT", steps: no("CONNECT a:80 HTTP/1.1\r\n\r\n"), cause: CauseProtocol, text: []string{"this is an HTTP request", do}},
	})
}

func TestStranger(t *testing.T) {
	for _, tt := range []struct{ name, says, want string }{
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"},
		{"SSH", "SSH-2.0-OpenSSH_9.2\r\n", "SSH"},
		{"PROXY protocol v1", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY protocol"},
		{"PROXY protocol v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11", "PROXY protocol"},
		{"one byte of a method", "D", "HTTP request"},
		{"no method", "GETS / HTTP/1.1", "begins with 47 45 54 53"},
		{"capitals", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "(it begins with " + strings.TrimSpace(strings.Repeat("41 ", 16)) + ")"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := stranger([]byte(tt.says)); !strings.Contains(got, tt.want) {
				t.Errorf("stranger(%q) = %q, want it to contain %q", tt.says, got, tt.want)
			}
		})
	}
}

// RFC 1928, section 4: "If the chosen method is … the client sends the request details."
func TestRFC1928Section4Requests(t *testing.T) {
	request := func(r string) []step { return []step{{greetNone, choseNone}, {r, ""}} }
	refused := func(r string, code byte) []step { return []step{{greetNone, choseNone}, {r, said(code)}} }
	long := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61) // 253 bytes
	runExchanges(t, []exchange{
		{name: "IPv4", steps: request(connectAddr), addr: "192.0.2.1", port: 80},
		{name: "IPv6", steps: request(connectV6), addr: "2001:db8::1", port: 80},
		{name: "IPv4 mapped to IPv6", steps: request("\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x7f\x00\x00\x01\x00\x50"), addr: "127.0.0.1", port: 80},
		{name: "name", steps: request(connectName), host: "orders.shop.svc", port: 443},
		{name: "longest name", steps: request("\x05\x01\x00\x03\xfd" + long + "\xff\xff"), host: long, port: 65535},
		{name: "name in capitals with a final dot", steps: request(named("Orders.Shop.SVC.", 80)), host: "orders.shop.svc", port: 80},
		{name: "IPv4 address as a name", steps: request(named("192.0.2.1", 80)), addr: "192.0.2.1", port: 80},
		{name: "IPv6 address as a name", steps: request(named("2001:db8::1", 80)), addr: "2001:db8::1", port: 80},
		{name: "mapped address as a name", steps: request(named("::ffff:192.0.2.1", 80)), addr: "192.0.2.1", port: 80},
		{name: "reserved byte set", steps: request("\x05\x01\x07\x01\xc0\x00\x02\x01\x00\x50"), addr: "192.0.2.1", port: 80},

		{name: "BIND", steps: refused("\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", 7), cause: CauseCommand, text: []string{"BIND", "CONNECT only"}},
		{name: "UDP ASSOCIATE", steps: refused("\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", 7), cause: CauseCommand, text: []string{"UDP ASSOCIATE"}},
		{name: "command 0", steps: refused("\x05\x00\x00\x01\xc0\x00\x02\x01\x00\x50", 7), cause: CauseCommand},
		{name: "command 0xF0 (Tor's RESOLVE)", steps: refused("\x05\xf0\x00\x03\x01a\x00\x00", 7), cause: CauseCommand, text: []string{"command 240"}},
		{name: "address type 0", steps: refused("\x05\x01\x00\x00\xc0\x00\x02\x01\x00\x50", 8), cause: CauseDestination, text: []string{"address type 0"}},
		{name: "address type 2", steps: refused("\x05\x01\x00\x02\xc0\x00\x02\x01\x00\x50", 8), cause: CauseDestination, text: []string{"address type 2"}},
		{name: "address type 255", steps: refused("\x05\x01\x00\xff\xc0\x00\x02\x01\x00\x50", 8), cause: CauseDestination},
		{name: "request of version 4", steps: refused("\x04\x01\x00\x50\xc0\x00\x02\x01\x00", 1), cause: CauseProtocol, text: []string{"version 4"}},
		{name: "HTTP after the greeting", steps: refused("GET / HTTP/1.1\r\n\r\n", 1), cause: CauseProtocol},
		{name: "login that was not asked for", steps: refused(loginBob, 1), cause: CauseProtocol},
		{name: "IPv4, port 0", steps: refused("\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00", 1), cause: CauseDestination, text: []string{"port 0"}},
		{name: "name, port 0", steps: refused(named("a.example", 0), 1), cause: CauseDestination, text: []string{"port 0"}},
		{name: "empty name", steps: refused(named("", 80), 4), cause: CauseDestination, text: []string{"empty"}},
	})
}

// named returns a request for a name.
func named(name string, port uint16) string {
	return "\x05\x01\x00\x03" + string([]byte{byte(len(name))}) + name + string([]byte{byte(port >> 8), byte(port)})
}

// Whatever getaddrinfo would take for an address, and whatever no DNS name can be, is told apart from
// names here, so that no resolver on the way is asked.
func TestRFC1928Section4NamesThatAreNone(t *testing.T) {
	var exchanges []exchange
	for _, name := range []string{
		"0x7f.1", "127.1", "2130706433", "0177.1", "0x7f000001", "0X7F000001", "017700000001", "127.0.0.1.", "1.2.3.4.5", "a.0x7f", "a.0x", "127.0.0.01",
		"256.1.1.1", "1.1.1", "a.1", "::1%lo", "fe80::1%1", "[::1]", "2001:DB8::1", "0:0:0:0:0:0:0:1", "::ffff:7f00:1", "::1:", "a:80", "127.0.0.1:80",
		"a\x00b", "a\nb", "a b", " a", "a ", "a/b", "a\\b", "a@b", "a%2e", "..", ".", ".a", "a..b", "a..", "-a", "a-", "a.-b", "é.example", "\xff", "*.example", "a,b", "a\tb", "a\x7f",
		strings.Repeat("a", 64), strings.Repeat("a.", 126) + "aa", strings.Repeat("a.", 127) + "a", strings.Repeat("\x00", 255),
	} {
		exchanges = append(exchanges, exchange{name: clip(name), steps: []step{{greetNone, choseNone}, {named(name, 80), said(4)}}, cause: CauseDestination})
	}
	runExchanges(t, exchanges)
}

// A client may send everything at once, payload included; nothing of it is lost.
func TestRFC1928PayloadSentAhead(t *testing.T) {
	bulk := strings.Repeat("payload ", 1<<15)
	for _, tt := range []struct {
		name         string
		users        map[string]Password
		first        string
		replies      string
		beforeAnswer bool
	}{
		{"with the request", nil, greetNone + connectName + "payload", choseNone, true},
		{"with the login", bob, greetBoth + loginBob + connectName + "payload", choseLogin + loginGood, true},
		{"more than a handshake has", nil, greetNone + connectName + bulk, choseNone, true},
		{"a single byte", nil, greetNone + connectName + "!", choseNone, true},
		{"none", nil, greetNone + connectName, choseNone, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, server := tcpPair(t)
			a := &app{t: t, conn: conn}
			wait := a.say(tt.first)
			result := catchLater(newSocks5(t, Socks5Config{Users: tt.users}), server)
			a.hears(tt.replies)
			got := <-result
			if got.err != nil {
				t.Fatalf("Catch = %v, want nil", got.err)
			}
			if err := got.conn.Accepted(); err != nil {
				t.Fatalf("Accepted = %v, want nil", err)
			}
			a.hears(said(0))
			_, want, _ := strings.Cut(tt.first, connectName)
			p := &app{t: t, conn: got.conn}
			p.hears(want)
			wait()
			if got.conn.NetConn() != server {
				t.Errorf("NetConn = %T, want the accepted connection", got.conn.NetConn())
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			p.hearsLast("")
		})
	}
}
