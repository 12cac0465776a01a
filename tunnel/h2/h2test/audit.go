package h2test

import (
	"fmt"
	"slices"
	"strings"
)

// audit follows a connection from both sides and names every frame of the tested end that RFC 9113 does
// not allow its sender. Where a setting of the Peer is on its way and the tested end may or may not have
// seen it, the kinder reading counts.
type audit struct {
	peerIsServer  bool
	bidirectional bool // both ends open streams and promise; see h2.Config

	streams       map[uint32]*auditStream
	recvWindow    int64 // what the tested end may still send on the connection
	sendWindow    int64 // what the Peer may still send on the connection
	theirInitial  int64 // windows of new streams for the Peer's sending
	ourInitial    int64 // and for the tested end's
	maxFrameBytes int   // what the tested end may send in a frame
	maxStreams    int64 // how many streams it may have open; -1 without limit
	pushAllowed   bool
	sawSettings   bool
	unacked       [][]Setting // the Peer's SETTINGS without acknowledgement
	lastOpened    uint32      // highest stream identifier that the tested end has opened or promised
	lastGoAway    uint32
	inBlock       uint32 // the stream whose field block is under way; 0: none
	sentFrames    int    // by the Peer
	pings         []int  // sentFrames when the Peer sent each of its PINGs that has no ACK yet
	seenFrames    int    // how many of the Peer's frames the tested end has seen for certain, by its ACK of a later PING
}

type auditStream struct {
	recvWindow, sendWindow int64
	theirs                 bool // opened or promised by the tested end
	promised               bool // promised by the tested end
	reserved               bool // promised, no HEADERS yet
	ended, reset           bool // by the tested end
	weEnded, weReset       bool
	weEndedAt              int  // sentFrames when the Peer ended it
	final                  bool // the tested end has sent its request or final response header section
}

func newAudit(peerIsServer bool) audit {
	return audit{peerIsServer: peerIsServer, streams: map[uint32]*auditStream{}, recvWindow: initialWindow,
		sendWindow: initialWindow, theirInitial: initialWindow, ourInitial: initialWindow, maxFrameBytes: 16384,
		maxStreams: -1, pushAllowed: true, lastGoAway: 1<<31 - 1}
}

func (a *audit) stream(id uint32) *auditStream {
	s := a.streams[id]
	if s == nil {
		s = &auditStream{recvWindow: a.ourInitial, sendWindow: a.theirInitial}
		a.streams[id] = s
	}
	return s
}

// sent takes note of a frame that the Peer writes.
func (a *audit) sent(f Frame) {
	a.sentFrames++
	switch f.Type {
	case Data:
		a.sendWindow -= int64(len(f.Payload))
		a.stream(f.StreamID).sendWindow -= int64(len(f.Payload))
	case Headers:
		a.stream(f.StreamID)
	case RSTStream:
		a.stream(f.StreamID).weReset = true
	case Ping:
		if !f.IsAck() {
			a.pings = append(a.pings, a.sentFrames)
		}
	case WindowUpdate:
		if f.StreamID == 0 {
			a.recvWindow += int64(f.Increment())
		} else {
			a.stream(f.StreamID).recvWindow += int64(f.Increment())
		}
	case Settings:
		if !f.IsAck() {
			a.announced(f.Settings())
		}
	}
	if f.EndStream() {
		s := a.stream(f.StreamID)
		s.weEnded, s.weEndedAt = true, a.sentFrames
	}
}

// announced applies what the Peer's SETTINGS permit at once, and keeps what they forbid until they are
// acknowledged.
func (a *audit) announced(settings []Setting) {
	a.unacked = append(a.unacked, settings)
	for _, s := range settings {
		switch {
		case s.ID == InitialWindowSize && int64(s.Value) > a.ourInitial:
			a.setOurInitial(int64(s.Value))
		case s.ID == MaxFrameSize:
			a.maxFrameBytes = max(a.maxFrameBytes, int(s.Value))
		case s.ID == MaxConcurrentStreams && a.maxStreams >= 0:
			a.maxStreams = max(a.maxStreams, int64(s.Value))
		}
	}
}

func (a *audit) acked() []string {
	if len(a.unacked) == 0 {
		return []string{"SETTINGS ACK without SETTINGS to acknowledge (section 6.5.3)"}
	}
	settings := a.unacked[0]
	a.unacked = a.unacked[1:]
	for _, s := range settings {
		switch s.ID {
		case InitialWindowSize:
			a.setOurInitial(int64(s.Value))
		case MaxFrameSize:
			a.maxFrameBytes = int(s.Value)
		case MaxConcurrentStreams:
			a.maxStreams = int64(s.Value)
		case EnablePush:
			a.pushAllowed = s.Value == 1
		}
	}
	return nil
}

func (a *audit) setOurInitial(v int64) {
	for _, s := range a.streams {
		s.recvWindow += v - a.ourInitial
	}
	a.ourInitial = v
}

// received takes note of a frame as it was on the wire and lists what is wrong with it.
func (a *audit) received(f Frame) (breaches []string) {
	bad := func(format string, args ...any) {
		breaches = append(breaches, fmt.Sprintf(format, args...)+": "+f.String())
	}
	if f.StreamID&0x80000000 != 0 {
		bad("the reserved bit MUST remain unset when sending (section 4.1)")
		f.StreamID &= 0x7fffffff
	}
	if len(f.Payload) > a.maxFrameBytes {
		bad("frame payload above SETTINGS_MAX_FRAME_SIZE %d (section 4.2)", a.maxFrameBytes)
	}
	if !a.sawSettings && (f.Type != Settings || f.IsAck()) {
		bad("the first frame is SETTINGS (section 3.4)")
	}
	a.sawSettings = true
	if known := flagsOf(f.Type); f.Flags&^known != 0 && f.Type <= Continuation {
		bad("unused flags MUST be left unset (section 4.1)")
	}
	if (f.Type == Continuation) != (a.inBlock != 0) || (a.inBlock != 0 && a.inBlock != f.StreamID) {
		bad("field blocks MUST be a contiguous sequence of frames (section 4.3)")
	}
	onStream := f.Type == Data || f.Type == Headers || f.Type == Priority || f.Type == RSTStream ||
		f.Type == PushPromise || f.Type == Continuation
	if f.Type <= Continuation && f.Type != WindowUpdate && onStream != (f.StreamID != 0) {
		bad("stream identifier does not suit the type (section 6)")
	}
	switch f.Type {
	case Headers, PushPromise, Continuation:
		a.inBlock = f.StreamID
		if f.Flags&EndHeaders != 0 {
			a.inBlock = 0
		}
	case Settings:
		breaches = append(breaches, a.settings(f)...)
	case GoAway:
		if f.LastStreamID() > a.lastGoAway {
			bad("endpoints MUST NOT increase the last stream identifier (section 6.8)")
		}
		a.lastGoAway = f.LastStreamID()
	case Ping:
		if len(f.Payload) != 8 {
			bad("PING has 8 octets (section 6.7)")
		}
		if f.IsAck() {
			if len(a.pings) == 0 {
				bad("PING ACK without PING (section 6.7)")
			} else {
				a.seenFrames, a.pings = a.pings[0], a.pings[1:]
			}
		}
	}
	if rest, ok := f.unpad(); !ok {
		bad("padding is longer than the frame (section 6.1)")
	} else if pad := len(f.Payload) - len(rest) - 1; pad > 0 && !allZero(f.Payload[1+len(rest):]) {
		bad("padding MUST be zero when sending (section 6.1)")
	}
	return append(breaches, a.states(f)...)
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

func flagsOf(t FrameType) Flags {
	switch t {
	case Data:
		return EndStream | Padded
	case Headers:
		return EndStream | EndHeaders | Padded | WithPriority
	case Settings, Ping:
		return Ack
	case PushPromise:
		return EndHeaders | Padded
	case Continuation:
		return EndHeaders
	}
	return 0
}

func (a *audit) settings(f Frame) (breaches []string) {
	if f.IsAck() {
		if len(f.Payload) != 0 {
			breaches = append(breaches, "SETTINGS ACK with a payload (section 6.5)")
		}
		return append(breaches, a.acked()...)
	}
	if len(f.Payload)%6 != 0 {
		return append(breaches, "SETTINGS length is no multiple of 6 (section 6.5)")
	}
	for _, s := range f.Settings() {
		switch {
		case s.ID == EnablePush && s.Value > 1, s.ID == EnablePush && s.Value == 1 && !a.peerIsServer && !a.bidirectional,
			s.ID == InitialWindowSize && s.Value > 1<<31-1,
			s.ID == MaxFrameSize && (s.Value < 1<<14 || s.Value > 1<<24-1),
			s.ID == EnableConnectProtocol && s.Value > 1:
			breaches = append(breaches, fmt.Sprintf("setting %#x has the value %d (section 6.5.2)", s.ID, s.Value))
		}
		if s.ID == InitialWindowSize {
			for _, st := range a.streams {
				st.sendWindow += int64(s.Value) - a.theirInitial
			}
			a.theirInitial = int64(s.Value)
		}
	}
	return breaches
}

// states checks windows, identifiers and stream states.
func (a *audit) states(f Frame) (breaches []string) {
	bad := func(format string, args ...any) {
		breaches = append(breaches, fmt.Sprintf(format, args...)+": "+f.String())
	}
	if f.Type == WindowUpdate {
		if len(f.Payload) != 4 || f.Increment() == 0 {
			bad("the legal range for the increment is 1 to 2^31-1 (section 6.9)")
		}
		w := &a.sendWindow
		if f.StreamID != 0 {
			w = &a.stream(f.StreamID).sendWindow
		}
		if *w += int64(f.Increment()); *w > 1<<31-1 {
			bad("window above 2^31-1 (section 6.9.1)")
		}
	}
	if f.StreamID == 0 || f.Type > Continuation || f.Type == Priority || f.Type == Continuation {
		return breaches
	}
	if _, known := a.streams[f.StreamID]; !known {
		breaches = append(breaches, a.opens(f)...)
	}
	s := a.stream(f.StreamID)
	switch {
	case s.reset && f.Type != RSTStream:
		bad("an endpoint MUST NOT send frames other than PRIORITY on a closed stream (section 5.1)")
	case s.ended && f.Type != RSTStream && f.Type != WindowUpdate:
		bad("frame after END_STREAM (section 5.1)")
	case s.ended && s.weEnded && s.weEndedAt < a.seenFrames && f.Type == WindowUpdate:
		bad("WINDOW_UPDATE on a closed stream (section 5.1)")
	}
	switch f.Type {
	case Data:
		if !s.final {
			bad("DATA before a final header section (section 8.1)")
		}
		a.recvWindow -= int64(len(f.Payload))
		s.recvWindow -= int64(len(f.Payload))
		if a.recvWindow < 0 && len(f.Payload) > 0 {
			bad("%d octets more than the connection's window allow (section 6.9.1)", -a.recvWindow)
		}
		if s.recvWindow < 0 && len(f.Payload) > 0 {
			bad("%d octets more than the stream's window allow (section 6.9.1)", -s.recvWindow)
		}
	case Headers:
		s.reserved = false
	case RSTStream:
		s.reset = true
	case PushPromise:
		breaches = append(breaches, a.promises(f)...)
	}
	s.ended = s.ended || f.EndStream()
	return breaches
}

// opens checks a frame on a stream that neither side has used.
func (a *audit) opens(f Frame) (breaches []string) {
	bad := func(format string, args ...any) {
		breaches = append(breaches, fmt.Sprintf(format, args...)+": "+f.String())
	}
	switch {
	case f.Type != Headers || !a.peerIsServer && !a.bidirectional || !a.isTheirs(f.StreamID):
		// RST_STREAM may answer what the Peer sent on a stream by WriteRaw.
		if f.Type != RSTStream {
			bad("stream is idle and not the sender's to open (section 5.1.1)")
		}
		return breaches
	case f.StreamID <= a.lastOpened:
		bad("a new stream identifier MUST be greater than all before, %d (section 5.1.1)", a.lastOpened)
	}
	a.lastOpened = f.StreamID
	open := int64(0)
	for _, s := range a.streams {
		if s.theirs && !s.reserved && !s.reset && !s.weReset && !(s.ended && s.weEnded) {
			open++
		}
	}
	a.stream(f.StreamID).theirs = true
	if a.maxStreams >= 0 && open+1 > a.maxStreams {
		bad("%d open streams, SETTINGS_MAX_CONCURRENT_STREAMS is %d (section 5.1.2)", open+1, a.maxStreams)
	}
	return breaches
}

// isTheirs reports whether the tested end opens, or promises, streams with this identifier (section 5.1.1).
func (a *audit) isTheirs(id uint32) bool { return id%2 == 1 == a.peerIsServer }

// asks reports whether the tested end sends requests on the stream, and not responses.
func (a *audit) asks(s *auditStream) bool {
	if a.bidirectional {
		return s.theirs && !s.promised
	}
	return a.peerIsServer
}

func (a *audit) promises(f Frame) (breaches []string) {
	promised := f.Promised()
	if a.peerIsServer && !a.bidirectional {
		breaches = append(breaches, "a client cannot push (section 8.4): "+f.String())
	}
	if !a.pushAllowed {
		breaches = append(breaches, "PUSH_PROMISE after SETTINGS_ENABLE_PUSH 0 (section 6.6): "+f.String())
	}
	if !a.isTheirs(promised) || promised <= a.lastOpened {
		breaches = append(breaches, fmt.Sprintf("illegal promised stream %d (section 6.6): %v", promised, f))
	}
	a.lastOpened = max(a.lastOpened, promised)
	s := a.stream(promised)
	s.theirs, s.promised, s.reserved, s.weEnded = true, true, true, true
	return breaches
}

// section checks the field section of a whole HEADERS or PUSH_PROMISE frame.
func (a *audit) section(f Frame) (breaches []string) {
	bad := func(format string, args ...any) {
		breaches = append(breaches, fmt.Sprintf(format, args...)+": "+f.String())
	}
	s := a.stream(f.StreamID)
	trailers := f.Type == Headers && s.final
	asks := a.asks(s)
	if f.Type == Headers && (asks || !strings.HasPrefix(f.Value(":status"), "1")) {
		s.final = true
	}
	if trailers && !f.EndStream() {
		bad("a second header section without END_STREAM (section 8.1)")
	}
	regular, seen := false, map[string]bool{}
	for _, hf := range f.Fields {
		pseudo := strings.HasPrefix(hf.Name, ":")
		switch {
		case pseudo && trailers:
			bad("pseudo-header field in trailers (section 8.1)")
		case pseudo && (regular || seen[hf.Name]):
			bad("pseudo-header field %q late or twice (section 8.3)", hf.Name)
		case pseudo && (hf.Name == ":status") != (!asks && f.Type == Headers):
			bad("pseudo-header field %q does not belong there (section 8.3)", hf.Name)
		case !pseudo && !validName(hf.Name):
			bad("field name %q (section 8.2.1)", hf.Name)
		case connectionSpecific(hf.Name):
			bad("connection-specific field %q (section 8.2.2)", hf.Name)
		case !validValue(hf.Value):
			bad("field value %q (section 8.2.1)", hf.Value)
		}
		regular, seen[hf.Name] = regular || !pseudo, true
	}
	if f.Type == Headers && !asks && !trailers && !seen[":status"] {
		bad("response without :status (section 8.3.2)")
	}
	return breaches
}

// connectionSpecific names the fields of section 8.2.2.
func connectionSpecific(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

func validName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= 0x20 || r >= 0x7f || r == ':' || (r >= 'A' && r <= 'Z')
	})
}

func validValue(value string) bool {
	return !strings.ContainsAny(value, "\x00\r\n") && strings.Trim(value, " \t") == value
}
