package h2

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Conn is one HTTP/2 connection in either role. All methods are safe for concurrent use.
type Conn struct {
	// immutable after newConn
	nc       net.Conn
	gate     *Gate // below nc; nil: nc can only be read and written
	cfg      *Config
	client   bool
	log      *slog.Logger
	readDone chan struct{}   // closed when readLoop has ended
	closed   chan struct{}   // closed when nc is
	over     context.Context // done when the connection has failed or was closed, which end says
	end      context.CancelFunc
	stats    stats

	in inbound // owned by readLoop

	rtt        atomic.Int64             // last PING round trip, nanoseconds; 0: none yet
	lastRead   atomic.Int64             // time of the last bytes received, UnixNano
	windowGoal atomic.Int64             // receive window that streams may grow to, bytes
	httpInfo   atomic.Pointer[connInfo] // what requests have in common (http_server.go)
	owed       atomic.Int64             // connection credit held back while the budget was full, bytes

	mu sync.Mutex // taken before any Stream.mu; the groups below are guarded by it

	// streams (conn_streams.go)
	streams     map[uint32]*Stream
	nextID      uint32               // id of the next stream or promise of ours
	lastPeerID  uint32               // greatest id that the peer has opened or promised
	peerOpen    int                  // streams of the peer that are not closed on the wire
	peerHeld    int                  // streams of the peer that were reset and whose handler has not called Close
	peerTail    int                  // streams of the peer that ended cleanly and whose handler has not called Close
	ownOpen     int                  // streams of ours that are not closed on the wire
	openCond    *sync.Cond           // a slot may be free, or the connection has ended; L is mu
	refusedNow  int                  // streams refused since one was taken
	lateResets  int                  // RST_STREAM frames that may come for streams that have ended, one for each
	recentReset [2]recent            // ids that we have reset: of the peer's streams, and of ours
	unread      map[*Stream]struct{} // streams that are closed on the wire and not by their users
	idleSince   time.Time            // when the last stream went; zero while there are streams

	// the peer's SETTINGS (conn_settings.go)
	peer         peerSettings
	peerSettled  bool // its first SETTINGS came
	ownSettled   bool // it has acknowledged ours
	settledCond  *sync.Cond
	handshakeEnd *time.Timer

	// sending (sched.go, conn_send.go)
	busy       bool      // somebody holds the write role; only the holder calls nc.Write
	writeSince time.Time // when the write under way began; zero: none is
	lastSmall  time.Time // when somebody last began to write little
	flushing   bool      // flushLoop was started and has not taken the role yet
	ctrl       []byte    // control and header frames, in order, not yet written
	answers    int       // frames in ctrl that the peer made us send
	spare      []byte    // the other buffer of ctrl
	ring       ring      // streams with something to send
	sendWindow sendFlow
	patience   patience // of the ring, with sendWindow
	enc        *hpack.Encoder
	encBuf     bytes.Buffer
	allowance  int      // WINDOW_UPDATE frames that our DATA frames have earned the peer
	recv       recvFlow // the connection's receive window

	// end of life (conn_close.go, conn_ping.go)
	err         *ConnError
	sendErr     *ConnError    // why nothing can be written any more, while what has arrived is still read
	draining    bool          // we sent GOAWAY; streams of the peer above goAwayID are not taken
	goAwayID    uint32        // last stream id in our GOAWAY
	peerGoAway  bool          // the peer sent GOAWAY: Open fails
	peerLastID  uint32        // and this was its last stream id
	retired     chan struct{} // closed with peerGoAway
	pings       map[[8]byte]*ping
	pingSeq     uint64
	keepalive   *time.Timer
	silentSince time.Time // when a keep-alive PING went out unanswered; zero: none did
	peerCode    ErrCode   // of the peer's GOAWAY
	peerDebug   string    // and its debug data, cut
	finished    bool      // nc is closed, or will be
}

// recent remembers ids of streams that we have reset: frames that were on their way for them are ignored
// (RFC 9113, section 5.1). It holds recentPerStream times as many as may be open at once.
type recent struct {
	ids  []uint32
	next int
}

const recentPerStream = 4

// stats are counters for metrics; see Stats.
type stats struct {
	opened, accepted, refused, resetsIn, resetsOut, windowGrowth atomic.Int64
}

// Stats is a snapshot of a connection's counters.
type Stats struct {
	Opened, Accepted  int64 // streams, by us and by the peer
	Refused           int64 // streams of the peer refused by a limit
	ResetsIn          int64 // RST_STREAM received
	ResetsOut         int64 // RST_STREAM sent
	WindowGrowths     int64 // stream windows that grew
	WindowGoal        int64 // bytes that a stream's window may grow to now
	RTT               time.Duration
	PeerStreams, Live int // streams of the peer not ended; all streams

	// Of the connection's windows, in bytes: what may be sent; what the peer may send; and what of that was received
	// and is not given back yet, which is little but while the budget is full.
	SendWindow, RecvWindow, RecvPending int64
}

// ALPNBidirectional is the protocol of TLS (RFC 7301) on which both ends agree to Config.Bidirectional: HTTP/2 but for what
// is said there. It is our own and registered nowhere.
const ALPNBidirectional = "culvert-reverse/1"

// NewClient starts the client role on nc, which is a connection that the peer serves, TLS handshake
// included. It sends the preface and SETTINGS without waiting for the peer's. The connection owns nc.
func NewClient(nc net.Conn, cfg *Config) (*Conn, error) { return newConn(nc, cfg, true) }

// NewServer starts the server role on nc; the peer must send the client preface within
// HandshakeTimeout. The connection owns nc.
func NewServer(nc net.Conn, cfg *Config) (*Conn, error) { return newConn(nc, cfg, false) }

func newConn(nc net.Conn, cfg *Config, client bool) (*Conn, error) {
	if nc == nil {
		return nil, errors.New("h2: no connection")
	}
	c := &Conn{
		nc:         nc,
		gate:       gateOf(nc),
		cfg:        cfg.withDefaults(),
		client:     client,
		readDone:   make(chan struct{}),
		closed:     make(chan struct{}),
		retired:    make(chan struct{}),
		streams:    make(map[uint32]*Stream),
		peer:       defaultPeerSettings(),
		sendWindow: sendFlow{window: initialWindow, most: initialWindow},
		idleSince:  time.Now(),
	}
	c.over, c.end = context.WithCancel(context.Background())
	c.log = c.cfg.Logger
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.openCond, c.settledCond = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	c.enc = hpack.NewEncoder(&c.encBuf)
	c.nextID = 2
	if client {
		c.nextID = 1
		c.ctrl = append(c.ctrl, clientPreface...)
	}
	c.windowGoal.Store(int64(c.cfg.StreamWindow))
	c.lastRead.Store(time.Now().UnixNano())
	c.in.init(c)
	c.cfg.Budget.join(c)

	c.mu.Lock()
	c.queueFirstSettings()
	c.startTimers()
	c.kick()
	c.mu.Unlock()
	go c.readLoop() // ends when nc fails or is closed; Close waits for readDone
	return c, nil
}

// NetConn returns the connection below. Bytes must not be read from or written to it.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Client reports whether this side has the client role.
func (c *Conn) Client() bool { return c.client }

// Done is closed when the connection has ended, for whatever reason; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.over.Done() }

// AfterDone has do run in a goroutine of its own once the connection has ended, so that none has to wait for Done.
func (c *Conn) AfterDone(do func()) { context.AfterFunc(c.over, do) }

// Err returns a *ConnError once the connection has ended, else nil. After Close or a completed Drain
// its code is NoError.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return nil
	}
	return c.err
}

// NumStreams returns how many streams are open or have not been closed by their user.
func (c *Conn) NumStreams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) + c.peerHeld + c.peerTail
}

func (c *Conn) httpMemo() *atomic.Pointer[connInfo] { return &c.httpInfo }

// RTT returns the round trip measured last, zero before the first measurement.
func (c *Conn) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Stats returns the connection's counters.
func (c *Conn) Stats() Stats {
	c.mu.Lock()
	live, peers := len(c.streams), c.peerOpen
	send, recv, pending := c.sendWindow.window, int64(c.recv.window), int64(c.recv.pending)+c.owed.Load()
	c.mu.Unlock()
	return Stats{
		Opened: c.stats.opened.Load(), Accepted: c.stats.accepted.Load(), Refused: c.stats.refused.Load(),
		ResetsIn: c.stats.resetsIn.Load(), ResetsOut: c.stats.resetsOut.Load(),
		WindowGrowths: c.stats.windowGrowth.Load(), WindowGoal: c.windowGoal.Load(),
		RTT: c.RTT(), PeerStreams: peers, Live: live,
		SendWindow: send, RecvWindow: recv, RecvPending: pending,
	}
}

// waitLocked waits on cond, whose lock is held, until ready reports true or ctx ends.
func waitLocked(ctx context.Context, cond *sync.Cond, ready func() bool) error {
	if ready() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		cond.L.Lock()
		cond.Broadcast()
		cond.L.Unlock()
	})
	defer stop()
	for !ready() {
		if err := ctx.Err(); err != nil {
			return err
		}
		cond.Wait()
	}
	return nil
}
