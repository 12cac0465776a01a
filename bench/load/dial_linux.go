package load

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// lateBind is a net.Dialer's Control: with it the kernel picks the port of a bound address when it knows the other
// end too, so that ports run out per pair of addresses and not per address.
func lateBind(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

// manySources says that all of 127.0.0.0/8 is loopback.
const manySources = true
