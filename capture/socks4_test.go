package capture

import (
	"strings"
	"testing"
)

// Requests and replies of SOCKS4 and 4A.
func TestSocks4(t *testing.T) {
	const granted, rejected = "\x00\x5a\x00\x00\x00\x00\x00\x00", "\x00\x5b\x00\x00\x00\x00\x00\x00"
	ask := func(request string) []step { return []step{{request, ""}} }
	no := func(request string) []step { return []step{{request, rejected}} }
	list := []exchange{
		{name: "an address", steps: ask("\x04\x01\x00\x50\xc0\x00\x02\x01\x00"), addr: "192.0.2.1", port: 80},
		{name: "a user ID", steps: ask("\x04\x01\x00\x50\xc0\x00\x02\x01fred\x00"), addr: "192.0.2.1", port: 80},
		{name: "the longest user ID", steps: ask("\x04\x01\x00\x50\xc0\x00\x02\x01" + strings.Repeat("u", 255) + "\x00"), addr: "192.0.2.1", port: 80},
		{name: "a name", steps: ask("\x04\x01\x01\xbb\x00\x00\x00\x01fred\x00Orders.shop.svc\x00"), host: "orders.shop.svc", port: 443},
		{name: "an address as a name", steps: ask("\x04\x01\x01\xbb\x00\x00\x00\x07\x00192.0.2.1\x00"), addr: "192.0.2.1", port: 443},
		{name: "in small pieces", steps: []step{{"\x04\x01", ""}, {"\x01\xbb\x00\x00\x00\x01fr", ""}, {"ed\x00orders", ""}, {".svc\x00", ""}}, host: "orders.svc", port: 443},
		{name: "the address of this network", steps: ask("\x04\x01\x00\x50\x00\x00\x00\x00\x00"), addr: "0.0.0.0", port: 80},

		{name: "BIND", steps: no("\x04\x02\x00\x50\xc0\x00\x02\x01\x00"), cause: CauseCommand, text: []string{"BIND"}},
		{name: "port 0", steps: no("\x04\x01\x00\x00\xc0\x00\x02\x01\x00"), cause: CauseDestination, text: []string{"port 0"}},
		{name: "no name", steps: no("\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00"), cause: CauseDestination},
		{name: "a name that is a number", steps: no("\x04\x01\x00\x50\x00\x00\x00\x01\x000x7f.1\x00"), cause: CauseDestination},
		{name: "a user ID without end", steps: no("\x04\x01\x00\x50\xc0\x00\x02\x01" + strings.Repeat("u", 256)), cause: CauseProtocol, text: []string{"user ID is longer"}},
		{name: "a name without end", steps: no("\x04\x01\x00\x50\x00\x00\x00\x01\x00" + strings.Repeat("n", 256)), cause: CauseProtocol, text: []string{"name is longer"}},
		{name: "a listener with users", users: bob, steps: no("\x04\x01\x00\x50\xc0\x00\x02\x01bob\x00"), cause: CauseAuth, text: []string{"SOCKS4", "SOCKS5"}},
	}
	for i := range list {
		list[i].granted = granted
	}
	runExchanges(t, list)
}
