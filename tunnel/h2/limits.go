package h2

import (
	"log/slog"
	"time"
)

// The limits of a connection, each with its reason. Config has a field for every one of them.
const (
	// DefaultStreamWindow is the window of a new stream: 64 KiB holds the bandwidth-delay product of a
	// local network, and 200 stalled streams hold at most 12.5 MiB.
	DefaultStreamWindow = 64 << 10
	// DefaultMaxStreamWindow bounds growth: 16 MiB carries 1.3 Gbit/s over 100 ms.
	DefaultMaxStreamWindow = 16 << 20
	// DefaultConnWindow is the connection's receive window, what HBONE peers announce as well. It is
	// given back on receipt while the budget has room, so it bounds only what is on its way.
	DefaultConnWindow = 16 << 20
	// DefaultMaxFrameBytes is the SETTINGS_MAX_FRAME_SIZE offered: as HBONE peers do. DATA is passed on
	// as it arrives, so a large frame costs no buffer.
	DefaultMaxFrameBytes = 1 << 20
	// DefaultMaxStreams is the number of streams a peer may have open on one connection.
	DefaultMaxStreams = 200
	// DefaultMaxHeaderListBytes is SETTINGS_MAX_HEADER_LIST_SIZE, as HBONE peers announce it.
	DefaultMaxHeaderListBytes = 64 << 10
	// DefaultMaxHeaderFields bounds the fields of one message; 431 above it.
	DefaultMaxHeaderFields = 128
	// DefaultMaxHeaderBlockBytes bounds one encoded header block; the connection ends above it
	// (VU#421644).
	DefaultMaxHeaderBlockBytes = 64 << 10
	// DefaultMaxDecodedBytes bounds what one block may expand to before the connection ends, so that
	// HPACK references cannot make a small block cost much (CVE-2016-6581).
	DefaultMaxDecodedBytes = 256 << 10
	// DefaultMaxContinuations bounds the CONTINUATION frames of one block, empty ones included.
	DefaultMaxContinuations = 8
	// DefaultMaxInform bounds the 1xx answers to one request.
	DefaultMaxInform = 16
	// DefaultMaxQueuedControl bounds answers that the peer makes us queue while it does not read
	// (CVE-2019-9512, 9515).
	DefaultMaxQueuedControl = 500
	// DefaultMaxQueuedBytes bounds what waits before DATA, such as the answers to requests, while the peer
	// does not read.
	DefaultMaxQueuedBytes = 512 << 10
	// DefaultMaxEmptyData bounds consecutive DATA frames without data or END_STREAM (CVE-2019-9518).
	DefaultMaxEmptyData = 100
	// DefaultMaxSettings bounds the parameters of one SETTINGS frame.
	DefaultMaxSettings = 32

	// DefaultPingInterval and DefaultPingTimeout: a connection that is silent for the interval is asked,
	// and dead when it stays silent for the timeout.
	DefaultPingInterval = 10 * time.Second
	DefaultPingTimeout  = 20 * time.Second
	// DefaultHandshakeTimeout bounds preface, first SETTINGS and the acknowledgement of ours.
	DefaultHandshakeTimeout = 10 * time.Second
	// DefaultHeaderTimeout bounds the time from HEADERS to END_HEADERS.
	DefaultHeaderTimeout = 10 * time.Second
	// DefaultIdleTimeout ends a connection that has had no stream for so long.
	DefaultIdleTimeout = 5 * time.Minute
	// DefaultWriteTimeout ends a connection whose peer has not read 64 KiB for so long, whatever it sends.
	DefaultWriteTimeout = 30 * time.Second
	// DefaultCloseDelay is how long the socket of an offender is held, unread, after GOAWAY: it caps
	// what one connection can cost.
	DefaultCloseDelay = time.Second
)

// The default rates; immutable, as a constant cannot be a struct. They share one count, see oddities.go: at
// three quarters of it the peer is asked to leave, at the whole the connection ends.
var (
	// DefaultPeerResets bounds a peer's resets of streams that were not answered yet (CVE-2023-44487).
	DefaultPeerResets = Rate{500, 33}
	// DefaultOwnResets bounds resets that a peer's protocol errors make us send (CVE-2019-9514,
	// CVE-2025-8671); one with a handler behind it counts for handlerResetCost.
	DefaultOwnResets = Rate{100, 10}
	// DefaultControl bounds PING, SETTINGS, PRIORITY, frames of unknown types and frames on streams that
	// are gone (CVE-2019-9512, CVE-2019-9515).
	DefaultControl = Rate{1000, 100}
	// DefaultGlitches bounds oddities that are no error by themselves, such as a third GOAWAY or a header
	// list that is too long.
	DefaultGlitches = Rate{100, 10}
	// DefaultWindowUpdates bounds WINDOW_UPDATE frames beyond those that answer our DATA.
	DefaultWindowUpdates = Rate{2000, 1000}
	// DefaultSplinters bounds tiny DATA frames that a sender should have joined, see splinterBelow: in the
	// long run they may cost a few hundredths of a core.
	DefaultSplinters = Rate{25_600, 100_000}
)

const (
	// handlerResetCost is what a reset costs that stopped a handler at work, which may have been connecting:
	// ten of them end a connection.
	handlerResetCost = 10
	// closedResetCost is what a frame costs that came after the peer's own END_STREAM.
	closedResetCost = 2
	// trustedResets is how many early resets a peer may have in the count before the handlers of its new
	// streams start handlerDelay later. A stream that is reset meanwhile has cost nothing; a peer that
	// opens and resets at full speed has at most so many handlers at work for nothing.
	trustedResets = 50
	handlerDelay  = 10 * time.Millisecond
)

// splinterBelow is the size of a DATA frame that counts as a splinter when its stream had another such frame
// in the same TLS record: a sender that coalesces would have sent one frame. Keystrokes and pings arrive in
// records of their own, or with those of other streams, and do not count. It costs the more the smaller it is.
const splinterBelow = 256

// Rate is a limit on how often something may happen: Burst times at once, and PerSecond in the long run.
// The zero Rate stands for the default; a negative Burst means no limit.
type Rate struct{ Burst, PerSecond float64 }

// Config sets the limits and hooks of a connection. Zero means the default named at the field, negative
// means off where that is said. A Config is not changed after it was handed over and may serve many
// connections.
type Config struct {
	// Handler is called in a goroutine of its own for every stream that the peer opens. It, or whom it
	// hands the stream to, must call Stream.Close. Nil: peers may open no stream.
	Handler func(*Stream)
	// OnPush is called by the reader of the connection for every promise on a stream that we opened; it
	// must not block. The promised stream must be closed. Nil with EnablePush: promises are refused.
	OnPush func(parent *Stream, promise *Header, promised *Stream)
	// OnInform is called for a 1xx answer to a request of ours, by the reader; it must not block.
	OnInform func(s *Stream, h *Header)
	// OnOffence is called once with what made us end a connection; it must not block.
	OnOffence func(c *Conn, err *ConnError)
	// OnRefused is called for a request that Handler does not see, or that HTTPHandler keeps from its handler, as it is malformed
	// (status 400) or too large (431). It must not block, and not call the connection.
	OnRefused func(c *Conn, status int, reason string)
	// Budget is shared by all connections of the process. Nil: buffers are not bounded as a whole.
	Budget *Budget
	// Logger gets Debug lines about the connection. Nil: none.
	Logger *slog.Logger

	// EnablePush lets a server send promises (client role; RFC 9113, section 6.5.2).
	EnablePush bool
	// EnableConnectProtocol announces extended CONNECT (server role; RFC 8441, section 3).
	EnableConnectProtocol bool
	// Bidirectional lets both ends open streams, and promise: the client role with odd ids, the server role with even
	// ones, of which its promises take theirs as well. Each end is to the streams of the other what a server is in RFC
	// 9113: Handler, MaxStreams, EnablePush and EnableConnectProtocol hold for both roles, and every limit for each
	// direction by itself. It is no part of RFC 9113, so both ends must have agreed on it, by ALPN (ALPNBidirectional).
	Bidirectional bool

	StreamWindow        int32         // first receive window of a stream, bytes; 0: DefaultStreamWindow
	MaxStreamWindow     int32         // greatest receive window of a stream, bytes; 0: DefaultMaxStreamWindow
	ConnWindow          int32         // receive window of the connection, bytes; 0: DefaultConnWindow
	MaxFrameBytes       uint32        // greatest frame payload accepted; 0: DefaultMaxFrameBytes
	MaxStreams          uint32        // streams the peer may have open; 0: DefaultMaxStreams
	MaxHeaderListBytes  uint32        // header list in RFC 9113, section 6.5.2 bytes; 0: DefaultMaxHeaderListBytes
	MaxHeaderFields     int           // fields of one message; 0: DefaultMaxHeaderFields
	MaxHeaderBlockBytes int           // encoded header block; 0: DefaultMaxHeaderBlockBytes
	MaxDecodedBytes     int           // decoded header block; 0: DefaultMaxDecodedBytes
	MaxContinuations    int           // CONTINUATION frames of a block; 0: DefaultMaxContinuations
	MaxInform           int           // 1xx answers to a request; 0: DefaultMaxInform
	MaxQueuedControl    int           // queued answers; 0: DefaultMaxQueuedControl
	MaxQueuedBytes      int           // bytes queued before DATA; 0: DefaultMaxQueuedBytes
	MaxEmptyData        int           // consecutive empty DATA frames; 0: DefaultMaxEmptyData
	PeerResets          Rate          // resets by the peer before our answer; zero: DefaultPeerResets
	OwnResets           Rate          // stream errors of the peer; zero: DefaultOwnResets
	Control             Rate          // control frames; zero: DefaultControl
	Glitches            Rate          // oddities; zero: DefaultGlitches
	WindowUpdates       Rate          // unearned WINDOW_UPDATE frames; zero: DefaultWindowUpdates
	Splinters           Rate          // tiny DATA frames; zero: DefaultSplinters
	MaxSettings         int           // parameters of a SETTINGS frame; 0: DefaultMaxSettings
	PingInterval        time.Duration // silence before a PING; 0: DefaultPingInterval, negative: off
	PingTimeout         time.Duration // silence after a PING; 0: DefaultPingTimeout
	HandshakeTimeout    time.Duration // preface and SETTINGS; 0: DefaultHandshakeTimeout, negative: off
	HeaderTimeout       time.Duration // HEADERS to END_HEADERS; 0: DefaultHeaderTimeout, negative: off
	IdleTimeout         time.Duration // without streams; 0: DefaultIdleTimeout, negative: off
	WriteTimeout        time.Duration // a write that makes no progress; 0: DefaultWriteTimeout, negative: off
	CloseDelay          time.Duration // socket held after a violation; 0: DefaultCloseDelay, negative: off
}

// or returns v, or def where v is zero.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// withDefaults returns a copy with every zero replaced.
func (c *Config) withDefaults() *Config {
	var d Config
	if c != nil {
		d = *c
	}
	d.StreamWindow = or(d.StreamWindow, DefaultStreamWindow)
	d.MaxStreamWindow = max(or(d.MaxStreamWindow, DefaultMaxStreamWindow), d.StreamWindow)
	d.ConnWindow = max(or(d.ConnWindow, DefaultConnWindow), initialWindow)
	d.MaxFrameBytes = min(max(or(d.MaxFrameBytes, DefaultMaxFrameBytes), minMaxFrame), maxMaxFrame)
	d.MaxStreams = or(d.MaxStreams, DefaultMaxStreams)
	d.MaxHeaderListBytes = or(d.MaxHeaderListBytes, DefaultMaxHeaderListBytes)
	d.MaxHeaderFields = or(d.MaxHeaderFields, DefaultMaxHeaderFields)
	d.MaxHeaderBlockBytes = or(d.MaxHeaderBlockBytes, DefaultMaxHeaderBlockBytes)
	d.MaxDecodedBytes = or(d.MaxDecodedBytes, DefaultMaxDecodedBytes)
	d.MaxContinuations = or(d.MaxContinuations, DefaultMaxContinuations)
	d.MaxInform = or(d.MaxInform, DefaultMaxInform)
	d.MaxQueuedControl = or(d.MaxQueuedControl, DefaultMaxQueuedControl)
	d.MaxQueuedBytes = or(d.MaxQueuedBytes, DefaultMaxQueuedBytes)
	d.MaxEmptyData = or(d.MaxEmptyData, DefaultMaxEmptyData)
	d.PeerResets = or(d.PeerResets, DefaultPeerResets)
	d.OwnResets = or(d.OwnResets, DefaultOwnResets)
	d.Control = or(d.Control, DefaultControl)
	d.Glitches = or(d.Glitches, DefaultGlitches)
	d.WindowUpdates = or(d.WindowUpdates, DefaultWindowUpdates)
	d.Splinters = or(d.Splinters, DefaultSplinters)
	d.MaxSettings = or(d.MaxSettings, DefaultMaxSettings)
	d.PingInterval = or(d.PingInterval, DefaultPingInterval)
	d.PingTimeout = or(d.PingTimeout, DefaultPingTimeout)
	d.HandshakeTimeout = or(d.HandshakeTimeout, DefaultHandshakeTimeout)
	d.HeaderTimeout = or(d.HeaderTimeout, DefaultHeaderTimeout)
	d.IdleTimeout = or(d.IdleTimeout, DefaultIdleTimeout)
	d.WriteTimeout = or(d.WriteTimeout, DefaultWriteTimeout)
	d.CloseDelay = or(d.CloseDelay, DefaultCloseDelay)
	return &d
}
