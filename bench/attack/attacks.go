package attack

import (
	"errors"
	"strings"

	"golang.org/x/net/http2"
)

// Attack is something that a peer does to an exit. Where Codes is empty the connection may live, and what
// counts is that nobody else notices.
type Attack struct {
	Row      int // of the attack in the project's list; several may share one
	Name     string
	Settings []http2.Setting
	Hangs    bool                // tunnels lead to an address that does not answer
	Begin    func(p *Peer) error // what goes before the offences; nil: nothing
	Turn     func(p *Peer) error // one offence, buffered
	Limit    int                 // offences after which the gateway must have ended the connection
	Codes    []http2.ErrCode     // of its GOAWAY
	Dials    int                 // connections to destinations that one connection may cost, beyond those of Begin
}

var (
	calm     = []http2.ErrCode{http2.ErrCodeEnhanceYourCalm}
	protocol = []http2.ErrCode{http2.ErrCodeProtocol}
	flow     = []http2.ErrCode{http2.ErrCodeFlowControl}
)

// Limits of SECURITY.md, "What is bounded".
const (
	maxPeerResets    = 500
	maxOwnResets     = 100
	maxControl       = 1000
	maxGlitches      = 101 // the first GOAWAY is none
	maxWindowUpdates = 2100
	maxEmpty         = 101
	maxBlockFrames   = 9
	maxStreams       = 200
	splinters        = 400_000 // a fast gateway ends at some 30,000; a slow one forgives 100,000 a second
	resetDials       = 100
	madeResetDials   = 10
)

// Attacks are those on an exit that end the connection.
func Attacks() []Attack {
	var list []Attack
	for _, part := range [][]Attack{resets(), blocks(), floods(), identifiers()} {
		list = append(list, part...)
	}
	return list
}

// opened is an offence on a stream that asks for a tunnel.
func opened(offend func(p *Peer, id uint32) error) func(p *Peer) error {
	return func(p *Peer) error {
		id, err := p.Connect()
		return errors.Join(err, offend(p, id))
	}
}

// oneByOne is opened with every stream's head in a record of its own, so that its dial begins.
func oneByOne(offend func(p *Peer, id uint32) error) func(p *Peer) error {
	return func(p *Peer) error {
		id, err := p.Connect()
		return errors.Join(err, p.Flush(), offend(p, id), p.Flush())
	}
}

func reset(p *Peer, id uint32) error { return p.fr.WriteRSTStream(id, http2.ErrCodeCancel) }

// violations are the frames that make a gateway reset a stream (CVE-2025-8671), by name.
func violations() []struct {
	name string
	make func(p *Peer, id uint32) error
} {
	end := func(p *Peer, id uint32) error { return p.fr.WriteData(id, true, nil) }
	return []struct {
		name string
		make func(p *Peer, id uint32) error
	}{
		{"WINDOW_UPDATE of 0", func(p *Peer, id uint32) error {
			return p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
		}},
		{"window overflow", func(p *Peer, id uint32) error { return p.fr.WriteWindowUpdate(id, 1<<31-1) }},
		{"PRIORITY of a wrong length", func(p *Peer, id uint32) error {
			return p.fr.WriteRawFrame(http2.FramePriority, 0, id, make([]byte, 4))
		}},
		{"PRIORITY on itself", func(p *Peer, id uint32) error {
			return p.fr.WritePriority(id, http2.PriorityParam{StreamDep: id})
		}},
		{"HEADERS after END_STREAM", func(p *Peer, id uint32) error {
			return errors.Join(end(p, id), p.Headers(id, true, "x", "y"))
		}},
		{"DATA after END_STREAM", func(p *Peer, id uint32) error {
			return errors.Join(end(p, id), p.fr.WriteData(id, false, []byte("x")))
		}},
	}
}

func resets() []Attack {
	list := []Attack{
		{Row: 1, Name: "rapid reset", Turn: opened(reset), Limit: maxPeerResets, Codes: calm, Dials: resetDials},
		{Row: 1, Name: "rapid reset, a record each", Turn: oneByOne(reset), Limit: maxPeerResets, Codes: calm, Dials: resetDials},
		{Row: 1, Name: "rapid reset of dials that hang", Hangs: true, Turn: oneByOne(reset), Limit: maxPeerResets, Codes: calm, Dials: resetDials},
	}
	for _, v := range violations() {
		list = append(list, Attack{Row: 2, Name: "made-you-reset: " + v.name, Hangs: true, Turn: oneByOne(v.make),
			Limit: maxOwnResets, Codes: calm, Dials: madeResetDials})
	}
	return append(list,
		Attack{Row: 2, Name: "made-you-reset at full speed", Turn: opened(violations()[0].make), Limit: maxOwnResets, Codes: calm, Dials: madeResetDials},
		Attack{Row: 5, Name: "malformed requests", Turn: func(p *Peer) error {
			p.Next += 2
			return p.Headers(p.Next, true, ":method", "CONNECT")
		}, Limit: maxOwnResets, Codes: calm},
		Attack{Row: 10, Name: "more DATA than a stream's window", Turn: opened(func(p *Peer, id uint32) error {
			return p.fr.WriteData(id, false, make([]byte, 64<<10+1))
		}), Limit: maxOwnResets, Codes: calm, Dials: madeResetDials},
		Attack{Row: 15, Name: "DATA on streams that are closed", Begin: func(p *Peer) error {
			id, err := p.Tunnel()
			err = errors.Join(err, p.fr.WriteData(id, true, nil), p.Flush())
			p.Wait(patience, func(s *Seen) bool { return s.Ended || s.Frames > 0 })
			return err
		}, Turn: func(p *Peer) error { return p.fr.WriteData(1, false, []byte("x")) }, Limit: splinters,
			Codes: []http2.ErrCode{http2.ErrCodeEnhanceYourCalm, http2.ErrCodeStreamClosed}},
	)
}

func blocks() []Attack {
	open := func(p *Peer) error {
		p.Hush()
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: p.Next, BlockFragment: p.Encode(":method", "CONNECT")})
	}
	bomb := func(p *Peer) error {
		block := append(p.Encode("x", strings.Repeat("v", 3900)), strings.Repeat("\xbe", 12_000)...)
		p.Next += 2
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: p.Next, EndHeaders: true, BlockFragment: block})
	}
	return []Attack{
		{Row: 3, Name: "CONTINUATION without end", Begin: open, Turn: func(p *Peer) error {
			return p.fr.WriteContinuation(p.Next, false, []byte(strings.Repeat("\x00\x01x\x01y", 800)))
		}, Limit: maxBlockFrames, Codes: calm},
		{Row: 3, Name: "empty CONTINUATION without end", Begin: open, Turn: func(p *Peer) error {
			return p.fr.WriteContinuation(p.Next, false, nil)
		}, Limit: maxBlockFrames, Codes: calm},
		{Row: 3, Name: "a header block of 100 KiB", Turn: func(p *Peer) error {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: make([]byte, 100<<10)})
		}, Limit: 1, Codes: calm},
		{Row: 8, Name: "HPACK bomb", Turn: bomb, Limit: 1, Codes: calm},
		{Row: 8, Name: "header fields without name and value", Turn: func(p *Peer) error {
			p.Next += 2
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: p.Next, EndHeaders: true, BlockFragment: []byte(strings.Repeat("\x00\x00\x00", 9000))})
		}, Limit: 1, Codes: calm},
		{Row: 8, Name: "requests with 200 fields", Turn: func(p *Peer) error {
			fields := []string{":method", "CONNECT", ":authority", p.target}
			for range 200 {
				fields = append(fields, "x", "y")
			}
			p.Next += 2
			return p.Headers(p.Next, true, fields...)
		}, Limit: maxGlitches, Codes: calm},
	}
}

func floods() []Attack {
	tunnel := func(p *Peer) error { _, err := p.Tunnel(); return err }
	raw := func(kind http2.FrameType, flags http2.Flags, id uint32, payload string) func(*Peer) error {
		return func(p *Peer) error { return p.fr.WriteRawFrame(kind, flags, id, []byte(payload)) }
	}
	return []Attack{
		{Row: 4, Name: "PING", Turn: raw(http2.FramePing, 0, 0, "12345678"), Limit: maxControl, Codes: calm},
		{Row: 4, Name: "PING acknowledgements", Turn: raw(http2.FramePing, http2.FlagPingAck, 0, "12345678"), Limit: maxControl, Codes: calm},
		{Row: 4, Name: "SETTINGS", Turn: func(p *Peer) error { return p.fr.WriteSettings() }, Limit: maxControl, Codes: calm},
		{Row: 4, Name: "100 settings in a frame", Turn: raw(http2.FrameSettings, 0, 0, strings.Repeat("\x00\x09\x00\x00\x00\x00", 100)), Limit: 1, Codes: calm},
		{Row: 6, Name: "empty DATA", Begin: tunnel, Turn: raw(http2.FrameData, 0, 1, ""), Limit: maxEmpty, Codes: calm},
		{Row: 6, Name: "DATA that is padding alone", Begin: tunnel, Turn: raw(http2.FrameData, http2.FlagDataPadded, 1, "\x02\x00\x00"), Limit: maxEmpty, Codes: calm},
		{Row: 6, Name: "DATA of one octet", Begin: tunnel, Turn: raw(http2.FrameData, 0, 1, "x"), Limit: splinters, Codes: append(flow, calm...)},
		{Row: 7, Name: "WINDOW_UPDATE of one octet", Begin: tunnel, Turn: raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01"), Limit: 3 * maxWindowUpdates, Codes: calm},
		{Row: 12, Name: "PRIORITY", Turn: func(p *Peer) error {
			return p.fr.WritePriority(p.Next, http2.PriorityParam{StreamDep: p.Next + 2})
		}, Limit: maxControl, Codes: calm},
		{Row: 12, Name: "PRIORITY_UPDATE", Turn: raw(0x10, 0, 0, "\x00\x00\x00\x01u=3"), Limit: maxControl, Codes: calm},
		{Row: 12, Name: "frames of an unknown type", Turn: raw(0x42, 0, 0, "x"), Limit: maxControl, Codes: calm},
		{Row: 14, Name: "GOAWAY", Turn: func(p *Peer) error { return p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, Limit: maxGlitches, Codes: calm},
	}
}

func identifiers() []Attack {
	head := func(id func(p *Peer) uint32) func(p *Peer) error {
		return func(p *Peer) error { return p.Headers(id(p), false, ":method", "CONNECT", ":authority", p.target) }
	}
	at := func(id uint32) func(*Peer) uint32 { return func(*Peer) uint32 { return id } }
	tunnel := func(p *Peer) error { p.Next = 101; _, err := p.Tunnel(); return err }
	return []Attack{
		{Row: 10, Name: "overflow of the connection's window", Turn: func(p *Peer) error { return p.fr.WriteWindowUpdate(0, 1<<31-1) }, Limit: 1, Codes: flow},
		{Row: 11, Name: "stream 0", Turn: head(at(0)), Limit: 1, Codes: protocol},
		{Row: 11, Name: "an even stream", Turn: head(at(2)), Limit: 1, Codes: protocol},
		{Row: 11, Name: "a stream below the last", Begin: tunnel, Turn: head(at(3)), Limit: 1, Codes: append(protocol, http2.ErrCodeStreamClosed)},
		{Row: 11, Name: "RST_STREAM of an idle stream", Turn: func(p *Peer) error { return reset(p, 77) }, Limit: 1, Codes: protocol},
		{Row: 11, Name: "tunnels beyond the limit", Turn: head(func(p *Peer) uint32 { p.Next += 2; return p.Next }),
			Limit: 2*maxStreams + 1, Codes: calm, Dials: maxStreams},
		{Row: 13, Name: "PUSH_PROMISE by a client", Begin: tunnel, Turn: func(p *Peer) error {
			return p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 101, PromiseID: 2, EndHeaders: true})
		}, Limit: 1, Codes: protocol},
		{Row: 14, Name: "GOAWAY with a rising stream", Begin: func(p *Peer) error { return p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, Turn: func(p *Peer) error {
			return p.fr.WriteGoAway(9, http2.ErrCodeNo, nil)
		}, Limit: 1, Codes: protocol},
		{Row: 16, Name: "HTTP/1.1 inside", Turn: func(p *Peer) error {
			_, err := p.out.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
			return err
		}, Limit: 1, Codes: []http2.ErrCode{http2.ErrCodeFrameSize, http2.ErrCodeProtocol}},
	}
}
