package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/armon/go-socks5"
)

// WaySocks5 is Conn.Way of a connection that was caught by Socks5.
const WaySocks5 = "socks5"

// defaultSocksTimeout is how long an app may take for the handshake: ten times what a far client on a
// bad line needs for its three round trips.
const defaultSocksTimeout = 10 * time.Second

// The longest messages of a client.
const (
	maxGreetingBytes = 1 + 1 + 255             // RFC 1928, section 3: VER NMETHODS METHODS
	maxLoginBytes    = 1 + 1 + 255 + 1 + 255   // RFC 1929, section 2: VER ULEN UNAME PLEN PASSWD
	maxRequestBytes  = 1 + 1 + 1 + 1 + 256 + 2 // RFC 1928, section 4: VER CMD RSV ATYP DST.ADDR DST.PORT
	maxEmptyReads    = 100                     // reads in a row that return neither bytes nor an error
	maxShownBytes    = 16                      // how much of what is no SOCKS5 an error shows
)

// Values of RFC 1928 and RFC 1929.
const (
	socksVersion    = 0x05
	noneAcceptable  = 0xFF // X'FF' NO ACCEPTABLE METHODS
	loginVersion    = 0x01
	loginFailed     = 0x01 // any STATUS but X'00'
	addrTypeIPv4    = 0x01
	addrTypeName    = 0x03
	addrTypeIPv6    = 0x04
	replySucceeded  = 0x00
	replyGeneral    = 0x01
	replyNotAllowed = 0x02
	replyNetwork    = 0x03
	replyHost       = 0x04
	replyRefused    = 0x05
	replyTTL        = 0x06
	replyCommand    = 0x07
	replyAddrType   = 0x08
)

// Socks5 catches connections of apps that speak SOCKS5 (RFC 1928): CONNECT to a name, an IPv4 or an IPv6
// address, without a login or with user name and password (RFC 1929). Where no login is asked for, it takes SOCKS4 and
// 4A as well. The app hears of success only when the flow stands.
//
// It is built on the request parser and the authenticators of github.com/armon/go-socks5. The greeting
// and the replies are our own, since there they are private to a server that resolves, dials and copies
// by itself and takes the first method that a client names.
type Socks5 struct {
	timeout    time.Duration // 0: no limit
	udp        bool
	users      *users // nil: no login
	warnings   []string
	handshakes sync.Pool // of *handshake: a parked app holds a kilobyte only while its handshake runs

	mu           sync.Mutex
	closed       bool                      // guarded by mu
	associations map[*association]struct{} // that live; guarded by mu
}

var _ Way = (*Socks5)(nil)

// NewSocks5 returns the way that cfg describes, or what Validate says is wrong with it. It reads
// cfg.UsersFile once; a changed file takes a new Socks5.
func NewSocks5(cfg Socks5Config) (*Socks5, error) {
	users, warnings, err := cfg.load()
	if err != nil {
		return nil, err
	}
	s := &Socks5{timeout: cfg.Timeout, udp: cfg.UDP, users: users, warnings: warnings}
	switch {
	case s.timeout == 0:
		s.timeout = defaultSocksTimeout
	case s.timeout < 0:
		s.timeout = 0
	}
	return s, nil
}

// Warnings returns what works, but should be known to an operator; nil is usual.
func (s *Socks5) Warnings() []string { return slices.Clone(s.warnings) }

// LogValue returns what s does, without secrets.
func (s *Socks5) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("login", s.users), slog.Duration("timeout", s.timeout))
}

// Catch speaks SOCKS5 with nc up to and including the client's request, as Way.Catch says. The reply is
// left to Accepted and Refused of the Conn. With UDP it is for Serve.
func (s *Socks5) Catch(nc net.Conn) (*Conn, error) {
	h, ok := s.handshakes.Get().(*handshake)
	if !ok {
		h = new(handshake)
	}
	c, failed := s.handshake(h, nc)
	h.reset()
	s.handshakes.Put(h)
	switch {
	case failed == nil:
		return c, nil
	case failed.Err == nil:
		linger(nc) // there was a reply to be read
	}
	_ = nc.Close() // the handshake has failed already; nothing is to be done about it
	return nil, failed
}

func (s *Socks5) handshake(h *handshake, nc net.Conn) (*Conn, *HandshakeError) {
	h.way, h.nc = s, nc
	if s.timeout > 0 {
		if h.err = nc.SetDeadline(time.Now().Add(s.timeout)); h.err != nil {
			return nil, h.broken("handshake")
		}
	}
	c, failed := h.converse()
	if failed != nil {
		return nil, failed
	}
	if s.timeout > 0 {
		if h.err = nc.SetDeadline(time.Time{}); h.err != nil {
			return nil, h.broken("handshake")
		}
	}
	c.ahead = bytes.Clone(h.unread()) // nil when there is nothing
	return c, nil
}

// converse speaks with the client until its destination is known.
func (h *handshake) converse() (*Conn, *HandshakeError) {
	if h.need(1) && h.buf[0] == socks4Version {
		return h.request4()
	}
	if failed := h.greet(); failed != nil {
		return nil, failed
	}
	user, failed := h.login()
	if failed != nil {
		return nil, failed
	}
	c, failed := h.request()
	if failed != nil {
		return nil, failed
	}
	c.User = user
	return c, nil
}

// handshake is one handshake. It is what go-socks5 reads from, writes to and asks for credentials.
//
// It reads what has come in one call and keeps what is over, because go-socks5 reads byte by byte, and
// because a client may send payload without waiting for the reply. buf has room for the longest
// handshake there is, so it is neither grown nor compacted, and nothing beyond it is read.
type handshake struct {
	way      *Socks5
	nc       net.Conn
	off      int    // buf[:off] has been parsed
	end      int    // buf[off:end] has been read
	err      error  // of nc; go-socks5's own errors hide it
	user     string // who logged in, or tried
	rejected bool   // the login was wrong
	buf      [maxGreetingBytes + maxLoginBytes + maxRequestBytes]byte
}

// reset forgets everything, above all the password in buf.
func (h *handshake) reset() {
	clear(h.buf[:h.end])
	h.way, h.nc, h.off, h.end, h.err, h.user, h.rejected = nil, nil, 0, 0, nil, "", false
}

// greet reads the client's greeting and says no if it does not offer the one method that is wanted. It
// leaves saying yes to the authenticator.
//
// A listener with users never takes method 0, whatever the client offers and in which order: that is the
// login bypass other servers had. One without users never takes method 2, which would let any password
// seem right.
func (h *handshake) greet() *HandshakeError {
	const what = "greeting"
	if !h.need(1) {
		return h.broken(what)
	}
	if h.buf[0] != socksVersion {
		// There is no reply for other versions. X'FF' is the nearest: it is how a SOCKS5 server says
		// that it has nothing to offer to this client, after which the client "MUST close".
		failed := h.fail(CauseProtocol, stranger(h.buf[:h.end]), "the listener speaks SOCKS5: "+
			"point apps at it as socks5h://, or choose a listener of the kind that they speak")
		return h.reply(failed, socksVersion, noneAcceptable)
	}
	if !h.need(2) || !h.need(2+int(h.buf[1])) {
		return h.broken(what)
	}
	methods := h.buf[2 : 2+int(h.buf[1])]
	h.off = 2 + len(methods)
	if bytes.IndexByte(methods, h.method()) >= 0 {
		return nil
	}
	came, do := "the client does not offer to log in", "it should send a user name and a password (method 2)"
	if h.way.users == nil {
		came, do = "the client insists on logging in", "the listener has no users: remove user and password from the app, or add users"
	}
	failed := h.fail(CauseAuth, fmt.Sprintf("%s (its methods: %x)", came, methods[:min(len(methods), maxShownBytes)]), do)
	return h.reply(failed, socksVersion, noneAcceptable)
}

func (h *handshake) method() byte {
	if h.way.users == nil {
		return socks5.NoAuth
	}
	return socks5.UserPassAuth
}

// login lets go-socks5's authenticator choose the method and check the client's credentials, and
// returns the user's name. What the authenticator lacks is in what it is given: h.Read never returns
// without a byte or an error, as its one-byte reads take for granted; h.Valid compares in constant time
// and refuses empty passwords; and the reply to a foreign version, to which it sends none, is sent here.
func (h *handshake) login() (user string, failed *HandshakeError) {
	const what = "login"
	if h.method() == socks5.NoAuth {
		if _, err := (socks5.NoAuthAuthenticator{}).Authenticate(h, h); err != nil {
			return "", h.broken(what)
		}
		return "", nil
	}
	start := h.off
	_, err := socks5.UserPassAuthenticator{Credentials: h}.Authenticate(h, h)
	switch {
	case err == nil:
		return h.user, nil
	case h.rejected: // even if the client did not wait to be told
		return "", h.fail(CauseAuth, h.wrongLogin(), "the listener's users and usersFile say who may log in")
	case h.err != nil:
		return "", h.broken(what)
	}
	failed = h.fail(CauseProtocol, fmt.Sprintf("the login has version %d", h.buf[start]),
		"the client should wait for the chosen method and log in with version 1 (RFC 1929)")
	return "", h.reply(failed, loginVersion, loginFailed)
}

// wrongLogin says what was wrong with a login. It names a user only if there is one: people type their
// password into the wrong field.
func (h *handshake) wrongLogin() string {
	if _, known := h.way.users.digests[h.user]; known {
		return fmt.Sprintf("wrong password for user %q", h.user)
	}
	return "a user name that is not known"
}

// request reads the client's request and returns the caught connection.
//
// NewRequest reports whatever is wrong as an untyped error, so that the request's bytes are looked at
// again to find out which reply is due.
func (h *handshake) request() (*Conn, *HandshakeError) {
	start := h.off
	req, err := socks5.NewRequest(h)
	switch {
	case err == nil:
	case h.err != nil:
		return nil, h.broken("request")
	case h.buf[start] != socksVersion:
		failed := h.fail(CauseProtocol, fmt.Sprintf("the request has version %d", h.buf[start]), "the client should speak SOCKS5 throughout")
		return nil, h.refuse(failed, replyGeneral)
	default:
		failed := h.fail(CauseDestination, fmt.Sprintf("address type %d", h.buf[h.off-1]), "the client should send a name, an IPv4 or an IPv6 address")
		return nil, h.refuse(failed, replyAddrType)
	}
	c := &Conn{Conn: h.nc, Way: WaySocks5, answer: socksAnswer{}, Port: uint16(req.DestAddr.Port)}
	switch {
	case req.Command == socks5.AssociateCommand && h.way.udp:
		c.rare = &rare{associate: true}
		return c, nil
	case req.Command == socks5.AssociateCommand:
		failed := h.fail(CauseCommand, commandName(req.Command), "the listener does CONNECT only; write udp: true (--socks-udp) if it should do UDP")
		return nil, h.refuse(failed, replyCommand)
	case req.Command != socks5.ConnectCommand:
		failed := h.fail(CauseCommand, commandName(req.Command), "the listener does CONNECT only")
		return nil, h.refuse(failed, replyCommand)
	}
	if addr, ok := netip.AddrFromSlice(req.DestAddr.IP); ok {
		c.Addr = addr.Unmap()
	} else if c.Host, c.Addr, err = parseHost(req.DestAddr.FQDN); err != nil {
		// The address type is supported, so that reply 8 would be wrong; "host unreachable" is what the
		// client would be told of any other name that nobody has.
		failed := h.fail(CauseDestination, fmt.Sprintf("destination %q: %v", clip(req.DestAddr.FQDN), err), "")
		return nil, h.refuse(failed, replyHost)
	}
	if c.Port == 0 {
		failed := h.fail(CauseDestination, "destination with port 0", "it should be 1 to 65535")
		return nil, h.refuse(failed, replyGeneral)
	}
	return c, nil
}

func commandName(command byte) string {
	switch command {
	case socks5.BindCommand:
		return "the client asks for BIND"
	case socks5.AssociateCommand:
		return "the client asks for UDP ASSOCIATE"
	}
	return fmt.Sprintf("the client sends command %d", command)
}

// Valid implements socks5.CredentialStore in constant time.
func (h *handshake) Valid(user, password string) bool {
	h.user = user
	h.rejected = !h.way.users.valid(user, password)
	return !h.rejected
}

// Read implements io.Reader for go-socks5. It returns at least one byte or an error.
func (h *handshake) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !h.need(1) {
		return 0, h.err
	}
	n := copy(p, h.unread())
	h.off += n
	return n, nil
}

// Write implements io.Writer for go-socks5.
func (h *handshake) Write(p []byte) (n int, err error) {
	n, h.err = h.nc.Write(p)
	return n, h.err
}

func (h *handshake) unread() []byte { return h.buf[h.off:h.end] }

// need reads until n bytes are unread, as few times as the client's pace allows. It returns false, with
// h.err set, if they do not come.
func (h *handshake) need(n int) bool {
	for empty := 0; h.end-h.off < n; {
		if h.err != nil {
			return false
		}
		if h.end == len(h.buf) || empty == maxEmptyReads {
			h.err = io.ErrNoProgress // the former is not to be reached: buf holds the longest handshake
			return false
		}
		var got int
		got, h.err = h.nc.Read(h.buf[h.end:])
		h.end += got
		if empty++; got > 0 {
			empty = 0
		}
	}
	return true
}

// fail returns the error of a client that did not do as it should.
func (h *handshake) fail(cause Cause, came, do string) *HandshakeError {
	failed := &HandshakeError{Way: WaySocks5, Cause: cause, Came: came, Do: do}
	if from := h.nc.RemoteAddr(); from != nil {
		failed.From = from.String()
	}
	return failed
}

// broken returns the error of a connection that did not last for the part of the handshake named stage.
func (h *handshake) broken(stage string) *HandshakeError {
	failed := h.fail(CauseNetwork, fmt.Sprintf("the %s broke off after %d bytes", stage, h.end), "")
	failed.Err = h.err
	switch {
	case errors.Is(h.err, os.ErrDeadlineExceeded):
		failed.Cause = CauseTimeout
		failed.Came = fmt.Sprintf("the %s was not complete after %v (%d bytes came)", stage, h.way.timeout, h.end)
		failed.Do = "check that it speaks SOCKS5, or raise the listener's timeout"
	case errors.Is(h.err, io.EOF), errors.Is(h.err, syscall.ECONNRESET), errors.Is(h.err, syscall.EPIPE), errors.Is(h.err, io.ErrClosedPipe):
		failed.Cause = CauseClosed
		failed.Came = fmt.Sprintf("the client hung up in its %s, after %d bytes", stage, h.end)
	}
	return failed
}

// refuse sends an RFC 1928 reply; see reply.
func (h *handshake) refuse(failed *HandshakeError, code byte) *HandshakeError {
	// An error while saying no changes nothing: the connection is closed either way.
	_ = writeReply(h.nc, code)
	return failed
}

// reply sends the last bytes of a failed handshake and returns failed.
func (h *handshake) reply(failed *HandshakeError, b ...byte) *HandshakeError {
	_, _ = h.nc.Write(b) // as in refuse
	return failed
}

// stranger says what something that is not SOCKS5 looks like.
func stranger(b []byte) string {
	switch {
	case b[0] == 0x16:
		return "this is a TLS client"
	case bytes.HasPrefix(b, []byte("SSH-")):
		return "this is an SSH client"
	case bytes.HasPrefix(b, []byte("PROXY ")), bytes.HasPrefix(b, []byte("\r\n\r\n\x00\r\nQUIT\n")):
		return "this is a PROXY protocol header"
	case bytes.HasPrefix(b, []byte("PRI * HTTP/2")):
		return "this is an HTTP/2 client"
	case isHTTPRequest(b):
		return "this is an HTTP request"
	}
	return fmt.Sprintf("this is no SOCKS5 greeting (it begins with % x)", b[:min(len(b), maxShownBytes)])
}

// isHTTPRequest reports whether b begins as an HTTP/1 request does, as far as it has come.
func isHTTPRequest(b []byte) bool {
	for _, method := range []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH "} {
		n := min(len(b), len(method))
		if string(b[:n]) == method[:n] {
			return true
		}
	}
	return false
}

// socksAnswer tells a SOCKS5 client what became of its request.
type socksAnswer struct{}

func (socksAnswer) accepted(nc net.Conn) error { return writeReply(nc, replySucceeded) }

func (socksAnswer) refused(nc net.Conn, r Refusal) error { return writeReply(nc, replyCode(r)) }

// replyCode returns the reply of RFC 1928, section 6 that says r.
func replyCode(r Refusal) byte {
	switch r {
	case NotAllowed:
		return replyNotAllowed
	case NetworkUnreachable:
		return replyNetwork
	case HostUnreachable, NameNotFound:
		return replyHost
	case ConnectionRefused:
		return replyRefused
	case TimedOut:
		return replyTTL // there is no reply for it; Tor uses this one as well
	}
	return replyGeneral
}

// writeReply sends VER REP RSV ATYP BND.ADDR BND.PORT. The bound address is that of a socket on another
// host, or of none; 0.0.0.0:0 is what servers send that do not know it.
func writeReply(nc net.Conn, code byte) error {
	_, err := nc.Write([]byte{socksVersion, code, 0, addrTypeIPv4, 0, 0, 0, 0, 0, 0})
	return err
}
