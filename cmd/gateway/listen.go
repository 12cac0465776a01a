package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// firstInheritedFD is where a service manager puts the first socket it opened (sd_listen_fds(3)).
const firstInheritedFD = 3

// maxInherited bounds the sockets that are taken from a service manager.
const maxInherited = 256

// sockets hands out listening sockets by address: one that was inherited if it fits, else a new one.
// Not for concurrent use.
type sockets struct {
	inherited []*net.TCPListener
	open      map[string]*net.TCPListener // handed out, by the address that was asked for; some are closed
}

// inheritSockets takes over the sockets that a service manager, or `gateway demo`, has opened for this
// process. It clears the variables, so that no child takes them again.
func inheritSockets() (*sockets, error) {
	s := &sockets{}
	count, pid := os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID")
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return s, err
		}
	}
	if count == "" || (pid != "" && pid != strconv.Itoa(os.Getpid())) {
		return s, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxInherited {
		return s, fmt.Errorf("LISTEN_FDS=%q is not a number of sockets from 0 to %d", count, maxInherited)
	}
	for fd := firstInheritedFD; fd < firstInheritedFD+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "inherited socket "+strconv.Itoa(fd))
		ln, err := net.FileListener(f)
		_ = f.Close()
		tcp, ok := ln.(*net.TCPListener)
		if err != nil || !ok {
			return s, fmt.Errorf("inherited socket %d is no listening TCP socket; the unit's ListenStream= should name host:port", fd)
		}
		s.inherited = append(s.inherited, tcp)
	}
	return s, nil
}

// listen returns a socket for address, which validate has accepted. An address whose socket is open in
// this process, because a reload gives it to another listener, gets a second handle of that socket, so that
// no connection is refused between the two.
func (s *sockets) listen(address string) (*net.TCPListener, error) {
	ln, err := s.find(address)
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = map[string]*net.TCPListener{}
	}
	s.open[address] = ln
	return ln, nil
}

func (s *sockets) find(address string) (*net.TCPListener, error) {
	for i, ln := range s.inherited {
		if sameAddress(ln.Addr().String(), address) {
			s.inherited = append(s.inherited[:i], s.inherited[i+1:]...)
			return ln, nil
		}
	}
	if old := s.open[address]; old != nil {
		if again, err := duplicate(old); err == nil {
			return again, nil
		}
	}
	ln, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, listenError(address, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		panic("BUG: a TCP listener that is not one")
	}
	return tcp, nil
}

// files returns a handle of every socket that is open, for another process to listen on.
func (s *sockets) files() (list []*os.File, err error) {
	for _, address := range slices.Sorted(maps.Keys(s.open)) {
		f, err := handle(s.open[address])
		if errors.Is(err, net.ErrClosed) {
			continue // a reload has no more use for it
		}
		if err != nil {
			return list, err
		}
		list = append(list, f)
		if strings.HasSuffix(address, ":0") {
			return list, fmt.Errorf("the system has chosen the port for %s, and would choose another one; give the listener a port", address)
		}
	}
	if len(list) > maxInherited {
		return list, fmt.Errorf("%d sockets are open, and a new process takes over %d at most", len(list), maxInherited)
	}
	return list, nil
}

// handle makes a file of a socket's second handle. File of net.TCPListener would not do: its Fd makes the socket
// blocking for every holder of a handle, and an accept loop would hang in the system.
func handle(ln *net.TCPListener) (*os.File, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	second := -1
	err2 := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock() // or a child that is started now would keep it
		defer syscall.ForkLock.RUnlock()
		if second, err = syscall.Dup(int(fd)); err == nil {
			syscall.CloseOnExec(second)
		}
	})
	if err = errors.Join(err2, err); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(second), "socket "+ln.Addr().String()), nil
}

// duplicate makes a second handle of a socket; it fails if the first one is closed.
func duplicate(ln *net.TCPListener) (*net.TCPListener, error) {
	f, err := handle(ln)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	again, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := again.(*net.TCPListener)
	if !ok {
		panic("BUG: a TCP listener that is not one")
	}
	return tcp, nil
}

// closeRest closes the inherited sockets that no listener wanted, and returns their addresses.
func (s *sockets) closeRest() []string {
	var addresses []string
	for _, ln := range s.inherited {
		addresses = append(addresses, ln.Addr().String())
		_ = ln.Close()
	}
	s.inherited = nil
	return addresses
}

// sameAddress reports whether a socket bound to bound serves what was configured as wanted.
func sameAddress(bound, wanted string) bool {
	host, port, err := net.SplitHostPort(wanted)
	b, err2 := netip.ParseAddrPort(bound)
	if err != nil || err2 != nil || port != strconv.Itoa(int(b.Port())) {
		return false
	}
	if host == "" {
		return b.Addr().IsUnspecified()
	}
	if host == "localhost" {
		return b.Addr().IsLoopback()
	}
	w, err := netip.ParseAddr(host)
	return err == nil && w.Unmap() == b.Addr().Unmap()
}

// listenError says in one line why address could not be had, and what to do.
func listenError(address string, err error) error {
	_, port, _ := net.SplitHostPort(address)
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "the port is in use"
		if owner := portOwner(port); owner != "" {
			hint += " by " + owner
		}
		hint += "; stop that program or choose another port"
	case errors.Is(err, syscall.EACCES):
		hint = "not permitted; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this host does not have that address; `ip address` lists those it has"
	default:
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	return fmt.Errorf("listen on %s: %s: %w", address, hint, rootCause(err))
}

// rootCause unwraps to the system's own word, so that a line does not say the address twice.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// isLoopback reports whether a socket bound to address is reachable from this host only.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// checkListenAddress says what is wrong with an address to listen on.
func checkListenAddress(address string) error {
	if address == "" {
		return errors.New("no address to listen on; it should be host:port, such as 127.0.0.1:1080 or :15008")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not an address to listen on; it should be host:port, such as 127.0.0.1:1080, [::1]:1080 or :15008", address)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q is not an IP address of this host; it should be an address, localhost, or nothing for all addresses", host)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q is not a port; it should be a number from 1 to 65535", port)
	}
	return nil
}
