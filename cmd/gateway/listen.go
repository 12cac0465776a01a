package main

import (
	"cmp"
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

	"culvert/tunnel"
)

// firstInheritedFD is where a service manager puts the first socket it opened (sd_listen_fds(3)).
const firstInheritedFD = 3

// maxInherited bounds the sockets that are taken from a service manager.
const maxInherited = 256

// sockets hands out sockets by what they are for: one that was inherited if it fits, else a new one.
// Not for concurrent use.
type sockets struct {
	inherited []opened
	open      map[tunnel.Socket]opened // handed out, by what was asked for; some are closed
}

// opened is a socket that is open: a *net.TCPListener, a *net.UnixListener or a *net.UDPConn.
type opened interface {
	syscall.Conn
	Close() error
}

// boundTo returns the network and the address of a socket.
func boundTo(o opened) (network, address string) {
	var at net.Addr
	switch o := o.(type) {
	case net.Listener:
		at = o.Addr()
	case net.PacketConn:
		at = o.LocalAddr()
	}
	return at.Network(), at.String()
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
		o, err := fromFile(f)
		_ = f.Close()
		if err != nil {
			return s, fmt.Errorf("inherited socket %d is none that a listener could be on: %w; the unit's ListenStream= should name host:port or a path, ListenDatagram= host:port", fd, err)
		}
		s.inherited = append(s.inherited, o)
	}
	return s, nil
}

// fromFile makes a socket of a file, which may be closed after.
func fromFile(f *os.File) (opened, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		pc, err2 := net.FilePacketConn(f)
		if u, ok := pc.(*net.UDPConn); ok && err2 == nil {
			return u, nil
		}
		return nil, err
	}
	switch ln := ln.(type) {
	case *net.TCPListener:
		return ln, nil
	case *net.UnixListener:
		ln.SetUnlinkOnClose(true)
		return ln, nil
	}
	return nil, fmt.Errorf("it is of network %s", ln.Addr().Network())
}

// listen returns a socket for streams, at an address that validate has accepted. One that is open in this process,
// because a reload gives it to another listener, gets a second handle, so that no connection is refused between the
// two.
func (s *sockets) listen(socket tunnel.Socket) (net.Listener, error) {
	o, err := s.find(socket)
	if err != nil {
		return nil, err
	}
	return o.(net.Listener), nil
}

// listenPacket is listen for datagrams.
func (s *sockets) listenPacket(socket tunnel.Socket) (*net.UDPConn, error) {
	o, err := s.find(socket)
	if err != nil {
		return nil, err
	}
	return o.(*net.UDPConn), nil
}

// tcpSocket is a plain TCP socket.
func tcpSocket(address string) tunnel.Socket { return tunnel.Socket{Network: "tcp", Address: address} }

func (s *sockets) find(socket tunnel.Socket) (opened, error) {
	o, err := s.findOrOpen(socket)
	if err != nil {
		return nil, listenError(socket.Address, err)
	}
	if s.open == nil {
		s.open = map[tunnel.Socket]opened{}
	}
	s.open[socket] = o
	return o, nil
}

func (s *sockets) findOrOpen(socket tunnel.Socket) (opened, error) {
	for i, o := range s.inherited {
		if network, at := boundTo(o); network == socket.Network && sameAddress(at, socket.Address) {
			s.inherited = append(s.inherited[:i], s.inherited[i+1:]...)
			return adopt(socket, o)
		}
	}
	for other, old := range s.open {
		if other.Network != socket.Network || other.Address != socket.Address {
			continue
		}
		if again, err := duplicate(old); err == nil {
			return adopt(socket, again)
		}
	}
	if socket.Network == "udp" {
		return socket.ListenPacket(context.Background())
	}
	ln, err := socket.Listen(context.Background())
	if err != nil {
		return nil, err
	}
	o, ok := ln.(opened)
	if !ok {
		panic("BUG: a listener that is no socket")
	}
	return o, nil
}

// adopt readies a socket for what it is to be, or closes it where that is not possible.
func adopt(socket tunnel.Socket, o opened) (opened, error) {
	if err := socket.Adopt(o); err != nil {
		_ = o.Close() // it is open
		return nil, err
	}
	return o, nil
}

// files returns a handle of every socket that is open, for another process to listen on.
func (s *sockets) files() (list []*os.File, err error) {
	for _, socket := range slices.SortedFunc(maps.Keys(s.open), func(a, b tunnel.Socket) int { return cmp.Compare(a.String(), b.String()) }) {
		f, err := handle(s.open[socket])
		if errors.Is(err, net.ErrClosed) {
			continue // a reload has no more use for it
		}
		if err != nil {
			return list, err
		}
		list = append(list, f)
		if strings.HasSuffix(socket.Address, ":0") {
			return list, fmt.Errorf("the system has chosen the port for %s, and would choose another one; give the listener a port", socket.Address)
		}
	}
	if len(list) > maxInherited {
		return list, fmt.Errorf("%d sockets are open, and a new process takes over %d at most", len(list), maxInherited)
	}
	return list, nil
}

// keepPaths leaves the paths of unix sockets where they are when these are closed: another process listens there now.
func (s *sockets) keepPaths() {
	for _, o := range s.open {
		if ln, ok := o.(*net.UnixListener); ok {
			ln.SetUnlinkOnClose(false)
		}
	}
}

// handle makes a file of a socket's second handle. File of net.TCPListener would not do: its Fd makes the socket
// blocking for every holder of a handle, and an accept loop would hang in the system.
func handle(o opened) (*os.File, error) {
	raw, err := o.SyscallConn()
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
	_, at := boundTo(o)
	return os.NewFile(uintptr(second), "socket "+at), nil
}

// duplicate makes a second handle of a socket; it fails if the first one is closed.
func duplicate(o opened) (opened, error) {
	f, err := handle(o)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if ln, ok := o.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(false) // the second handle does
	}
	return fromFile(f)
}

// closeRest closes the inherited sockets that no listener wanted, and returns their addresses.
func (s *sockets) closeRest() []string {
	var addresses []string
	for _, o := range s.inherited {
		_, at := boundTo(o)
		addresses = append(addresses, at)
		_ = o.Close()
	}
	s.inherited = nil
	return addresses
}

// sameAddress reports whether a socket bound to bound serves what was configured as wanted.
func sameAddress(bound, wanted string) bool {
	if bound == wanted {
		return true // such as a path
	}
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

// listenError says in one line why address could not be had, and what to do; nil for nil.
func listenError(address string, err error) error {
	_, port, _ := net.SplitHostPort(address)
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "the port is in use"
		if owner := portOwner(port); owner != "" {
			hint += " by " + owner
		}
		hint += "; stop that program or choose another port"
	case errors.Is(err, syscall.EACCES):
		hint = "not permitted; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EPERM):
		hint = "not permitted; to take what the packet filter leads here needs root or the capability CAP_NET_ADMIN"
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
