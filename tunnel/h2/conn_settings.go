package h2

import (
	"context"
	"encoding/binary"
	"time"
)

// Settings identifiers (RFC 9113, section 6.5.2; RFC 8441, section 3).
const (
	settingHeaderTableSize   = 0x1
	settingEnablePush        = 0x2
	settingMaxStreams        = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrame          = 0x5
	settingMaxHeaderList     = 0x6
	settingEnableConnectProt = 0x8
)

// maxEncoderTable bounds the memory of our HPACK encoder, whatever table the peer offers.
const maxEncoderTable = 4096

// assumedMaxStreams is how many streams are opened before the peer's SETTINGS are known.
const assumedMaxStreams = 100

// peerSettings are the values in force for what we send.
type peerSettings struct {
	push            bool
	maxStreams      uint32
	initialWindow   int64
	maxFrame        uint32
	maxHeaderList   uint32
	connectProtocol bool
}

func defaultPeerSettings() peerSettings {
	return peerSettings{push: true, maxStreams: assumedMaxStreams, initialWindow: initialWindow,
		maxFrame: minMaxFrame, maxHeaderList: maxWindow}
}

// queueFirstSettings queues our SETTINGS and the rest of the connection's window. Called with mu held.
func (c *Conn) queueFirstSettings() {
	type setting struct {
		id    uint16
		value uint32
	}
	list := make([]setting, 0, 7)
	if c.mayAsk() {
		push := uint32(0)
		if c.cfg.EnablePush {
			push = 1
		}
		list = append(list, setting{settingEnablePush, push})
	}
	if c.mayServe() || c.cfg.EnablePush {
		list = append(list, setting{settingMaxStreams, c.cfg.MaxStreams})
	}
	list = append(list,
		setting{settingInitialWindow, uint32(c.cfg.StreamWindow)},
		setting{settingMaxFrame, c.cfg.MaxFrameBytes},
		setting{settingMaxHeaderList, c.cfg.MaxHeaderListBytes})
	if c.mayServe() && c.cfg.EnableConnectProtocol {
		list = append(list, setting{settingEnableConnectProt, 1})
	}
	c.ctrl = appendFrameHeader(c.ctrl, 6*len(list), frameSettings, 0, 0)
	for _, s := range list {
		c.ctrl = binary.BigEndian.AppendUint16(c.ctrl, s.id)
		c.ctrl = binary.BigEndian.AppendUint32(c.ctrl, s.value)
	}
	c.recv = recvFlow{window: c.cfg.ConnWindow, size: c.cfg.ConnWindow}
	if more := c.cfg.ConnWindow - initialWindow; more > 0 {
		c.ctrl = appendWindowUpdate(c.ctrl, 0, uint32(more))
	}
}

// onSettings takes the peer's SETTINGS (RFC 9113, section 6.5).
func (c *Conn) onSettings(h frameHeader, p []byte) error {
	switch {
	case h.streamID != 0:
		return connError(ProtocolError, "SETTINGS on a stream")
	case h.has(flagAck) && len(p) != 0:
		return connError(FrameSizeError, "SETTINGS acknowledgement with a payload")
	case len(p)%6 != 0:
		return connError(FrameSizeError, "SETTINGS length not a multiple of 6")
	case len(p)/6 > c.cfg.MaxSettings:
		return connError(EnhanceYourCalm, "too many settings in one frame")
	}
	if err := c.in.odd(controlFrame, 1); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.has(flagAck) {
		if !c.ownSettled {
			c.ownSettled = true
			c.ownSettingsHold()
		}
		c.handshakeDone()
		return nil
	}
	for ; len(p) > 0; p = p[6:] {
		if err := c.applySetting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if !c.queueAnswer() {
		return connError(EnhanceYourCalm, "too many answers queued")
	}
	c.ctrl = appendFrameHeader(c.ctrl, 0, frameSettings, flagAck, 0)
	if !c.peerSettled {
		c.peerSettled = true
		c.handshakeDone()
	}
	c.settledCond.Broadcast()
	c.openCond.Broadcast()
	return nil
}

// ownSettingsHold is called when the peer has acknowledged our SETTINGS: from here on it knows them. Streams that
// it opened, or answered, before had the windows of a peer that does not, and have shrunk there (RFC 9113, section
// 6.9.2). Called with mu held.
func (c *Conn) ownSettingsHold() {
	c.refusedNow = 0
	less := initialWindow - c.cfg.StreamWindow
	if less <= 0 {
		return
	}
	for _, s := range c.streams {
		s.mu.Lock()
		s.flow.window -= less
		s.mu.Unlock()
	}
}

func (c *Conn) applySetting(id uint16, v uint32) error {
	switch id {
	case settingHeaderTableSize:
		c.enc.SetMaxDynamicTableSize(min(v, maxEncoderTable))
	case settingEnablePush:
		if v > 1 || v == 1 && !c.mayServe() {
			return connError(ProtocolError, "SETTINGS_ENABLE_PUSH out of range")
		}
		c.peer.push = v == 1
	case settingMaxStreams:
		c.peer.maxStreams = v
	case settingInitialWindow:
		return c.applyInitialWindow(v)
	case settingMaxFrame:
		if v < minMaxFrame || v > maxMaxFrame {
			return connError(ProtocolError, "SETTINGS_MAX_FRAME_SIZE out of range")
		}
		c.peer.maxFrame = v
	case settingMaxHeaderList:
		c.peer.maxHeaderList = v
	case settingEnableConnectProt:
		// RFC 8441, section 3: "a sender MUST NOT send a SETTINGS_ENABLE_CONNECT_PROTOCOL parameter with
		// the value of 0 after previously sending a value of 1".
		if v > 1 || v == 0 && c.peer.connectProtocol {
			return connError(ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL out of range")
		}
		c.peer.connectProtocol = v == 1
	}
	return nil // RFC 9113, section 6.5.2: unknown ones are ignored
}

// applyInitialWindow changes the window of every stream by the difference (RFC 9113, section 6.9.2);
// it may become negative.
func (c *Conn) applyInitialWindow(v uint32) error {
	if v > maxWindow {
		return connError(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1")
	}
	delta := int64(v) - c.peer.initialWindow
	c.peer.initialWindow = int64(v)
	if delta == 0 {
		return nil
	}
	for _, s := range c.streams {
		if !s.send.grant(delta) {
			return connError(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE overflows a stream's window")
		}
		if delta > 0 {
			c.maySend(s)
		} else if s.send.window <= 0 && len(s.out.p) > 0 {
			c.ring.remove(s)
		}
	}
	return nil
}

// maySend puts a stream that got window to where it is served, and wakes who waits for window. Called
// with mu held.
func (c *Conn) maySend(s *Stream) {
	c.enqueue(s)
	s.wcond.Broadcast()
}

// handshakeDone stops the handshake's clock when both sides have settled. Called with mu held.
func (c *Conn) handshakeDone() {
	if c.peerSettled && c.ownSettled && c.handshakeEnd != nil {
		c.handshakeEnd.Stop()
		c.handshakeEnd = nil
	}
}

// WaitSettings waits for the peer's first SETTINGS. Errors: ctx's or a *ConnError.
func (c *Conn) WaitSettings(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := waitLocked(ctx, c.settledCond, func() bool { return c.peerSettled || c.err != nil })
	switch {
	case c.peerSettled:
		return nil
	case c.err != nil:
		return c.err
	}
	return err
}

// PeerConnectProtocol reports whether the peer has enabled extended CONNECT (RFC 8441).
func (c *Conn) PeerConnectProtocol() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.connectProtocol
}

// startTimers starts the clocks of the connection. Called with mu held, once.
func (c *Conn) startTimers() {
	if d := c.cfg.HandshakeTimeout; d > 0 {
		c.handshakeEnd = time.AfterFunc(d, func() {
			c.fail(connError(SettingsTimeout, "preface and SETTINGS not complete in time"))
		})
	}
	if d := c.tickInterval(); d > 0 {
		c.keepalive = time.AfterFunc(d, c.tick)
	}
}
