package capture

import (
	"strings"
	"testing"
)

// RFC 1929, section 2: "A STATUS field of X'00' indicates success. If the server returns a `failure'
// (STATUS value other than X'00') status, it MUST close the connection."
func TestRFC1929Section2(t *testing.T) {
	long := strings.Repeat("x", 255)
	users := map[string]Password{"bob": "secret", "alice": Password(long), long: "pw", "ann:": " pass word\x00\xff"}
	good := func(login string) []step {
		return []step{{greetLogin, choseLogin}, {login, loginGood}, {connectName, ""}}
	}
	bad := func(login string) []step { return []step{{greetLogin, choseLogin}, {login, loginBad}} }
	const host, port = "orders.shop.svc", 443
	runExchanges(t, []exchange{
		{name: "good", users: users, steps: good(loginBob), user: "bob", host: host, port: port},
		{name: "longest password", users: users, steps: good("\x01\x05alice\xff" + long), user: "alice", host: host, port: port},
		{name: "longest name", users: users, steps: good("\x01\xff" + long + "\x02pw"), user: long, host: host, port: port},
		{name: "any bytes in a password", users: users, steps: good("\x01\x04ann:\x0c pass word\x00\xff"), user: "ann:", host: host, port: port},

		{name: "wrong password", users: users, steps: bad("\x01\x03bob\x06secreT"), cause: CauseAuth, text: []string{`wrong password for user "bob"`}},
		{name: "part of the password", users: users, steps: bad("\x01\x03bob\x05secre"), cause: CauseAuth},
		{name: "more than the password", users: users, steps: bad("\x01\x03bob\x07secret\x00"), cause: CauseAuth},
		{name: "password of another", users: users, steps: bad("\x01\x03bob\xff" + long), cause: CauseAuth},
		{name: "unknown name", users: users, steps: bad("\x01\x06hunter\x06secret"), cause: CauseAuth, text: []string{"a user name that is not known"}},
		{name: "name in capitals", users: users, steps: bad("\x01\x03Bob\x06secret"), cause: CauseAuth},
		{name: "empty password", users: users, steps: bad("\x01\x03bob\x00"), cause: CauseAuth},
		{name: "empty name", users: users, steps: bad("\x01\x00\x06secret"), cause: CauseAuth},
		{name: "both empty", users: users, steps: bad("\x01\x00\x00"), cause: CauseAuth},
		{name: "wrong and pipelined", users: users, steps: bad("\x01\x03bob\x01x" + connectName + "payload"), cause: CauseAuth},
		{name: "version 0", users: users, steps: bad("\x00\x03bob\x06secret"), cause: CauseProtocol, text: []string{"the login has version 0"}},
		{name: "version 5", users: users, steps: bad("\x05\x03bob\x06secret"), cause: CauseProtocol},
		{name: "request instead of a login", users: users, steps: bad(connectName), cause: CauseProtocol, text: []string{"version 5", "RFC 1929"}},
		{name: "request instead of a login, not waiting", users: users, steps: []step{{greetBoth + connectName, choseLogin + loginBad}}, cause: CauseProtocol},
	})
}

// A password of a user never opens the listener for another name, and an error never shows one.
func TestRFC1929PasswordStaysSecret(t *testing.T) {
	conn, server := tcpPair(t)
	a := &app{t: t, conn: conn}
	result := catchLater(newSocks5(t, Socks5Config{Users: bob}), server)
	defer a.say(greetLogin + "\x01\x06secret\x07hunter2")()
	a.hearsLast(choseLogin + loginBad)
	conn.Close()
	got := <-result
	wantFailure(t, got, CauseAuth)
	for _, secret := range []string{"secret", "hunter2"} {
		if strings.Contains(got.err.Error(), secret) {
			t.Errorf("error = %q, which shows %q", got.err, secret)
		}
	}
}

// The handshake's memory goes back to the pool without what a client said in it.
func TestRFC1929MemoryIsCleared(t *testing.T) {
	way := newSocks5(t, Socks5Config{Users: bob})
	h := new(handshake)
	nc := newLoopConn(greetLogin, loginBob, connectName)
	if _, failed := way.handshake(h, nc); failed != nil {
		t.Fatal(failed)
	}
	h.reset()
	if *h != (handshake{}) {
		t.Errorf("after reset: %+v, want the zero handshake", *h)
	}
}
