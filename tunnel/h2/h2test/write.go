package h2test

import (
	"encoding/binary"
	"slices"
	"time"
)

// WriteRaw writes b as it is.
func (p *Peer) WriteRaw(b []byte) {
	if p.writeErr != nil {
		return
	}
	p.nc.SetWriteDeadline(time.Now().Add(p.timeout()))
	_, p.writeErr = p.nc.Write(b)
}

// WriteFrame writes one frame with this payload, whatever the RFC says of it.
func (p *Peer) WriteFrame(t FrameType, flags Flags, id uint32, payload []byte) {
	p.audit.sent(Frame{Type: t, Flags: flags, StreamID: id, Payload: payload})
	p.WriteRaw(AppendFrame(nil, t, flags, id, payload))
}

// WritePreface writes the client connection preface: the 24 octets and SETTINGS.
func (p *Peer) WritePreface(settings ...Setting) {
	p.WriteRaw([]byte(Preface))
	p.WriteSettings(settings...)
}

// Encode returns the field block of fields. Blocks must be written in the order they were encoded, for
// they change the compression state.
func (p *Peer) Encode(fields ...Field) []byte {
	p.encBuf.Reset()
	for _, f := range fields {
		if err := p.enc.WriteField(f); err != nil {
			p.t.Fatalf("h2test: encode %v: %v", f, err)
		}
	}
	return slices.Clone(p.encBuf.Bytes())
}

// WriteHeaders writes fields as a HEADERS frame, with CONTINUATION frames if the block needs more than
// 16,384 octets. end sets END_STREAM.
func (p *Peer) WriteHeaders(id uint32, end bool, fields ...Field) {
	var flags Flags
	if end {
		flags = EndStream
	}
	p.writeBlock(Headers, flags, id, nil, p.Encode(fields...))
}

// WritePushPromise writes fields as a PUSH_PROMISE frame on stream id that promises stream promised.
func (p *Peer) WritePushPromise(id, promised uint32, fields ...Field) {
	p.writeBlock(PushPromise, 0, id, binary.BigEndian.AppendUint32(nil, promised), p.Encode(fields...))
}

func (p *Peer) writeBlock(t FrameType, flags Flags, id uint32, prefix, block []byte) {
	const maxFragment = 16384
	n := min(len(block), maxFragment-len(prefix))
	if n == len(block) {
		flags |= EndHeaders
	}
	p.WriteFrame(t, flags, id, append(prefix, block[:n]...))
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), maxFragment)
		p.WriteContinuation(id, n == len(block), block[:n])
	}
}

// WriteContinuation writes one CONTINUATION frame; end sets END_HEADERS.
func (p *Peer) WriteContinuation(id uint32, end bool, fragment []byte) {
	var flags Flags
	if end {
		flags = EndHeaders
	}
	p.WriteFrame(Continuation, flags, id, fragment)
}

// WriteData writes data as one DATA frame without regard to any window; end sets END_STREAM.
func (p *Peer) WriteData(id uint32, end bool, data []byte) {
	var flags Flags
	if end {
		flags = EndStream
	}
	p.WriteFrame(Data, flags, id, data)
}

// WritePaddedData writes data as one DATA frame with a pad length field and padBytes of padding.
func (p *Peer) WritePaddedData(id uint32, end bool, data []byte, padBytes uint8) {
	flags := Padded
	if end {
		flags |= EndStream
	}
	payload := append([]byte{padBytes}, data...)
	p.WriteFrame(Data, flags, id, append(payload, make([]byte, padBytes)...))
}

// WriteAllData writes data as DATA frames of at most 16,384 octets as the windows of stream and connection
// allow, reading WINDOW_UPDATE frames while they are shut. expectation says what should open them.
func (p *Peer) WriteAllData(id uint32, end bool, data []byte, expectation string) {
	p.t.Helper()
	for {
		n := int(min(p.SendWindow(0), p.SendWindow(id), int64(len(data)), 16384))
		if n <= 0 && len(data) > 0 {
			if err := p.pump(time.Now().Add(p.timeout())); err != nil {
				p.t.Fatalf("%s: with %d bytes left to send on stream %d: %s", expectation, len(data), id, p.why(err))
			}
			continue
		}
		p.WriteData(id, end && n == len(data), data[:n])
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// WriteSettings writes a SETTINGS frame.
func (p *Peer) WriteSettings(settings ...Setting) {
	var payload []byte
	for _, s := range settings {
		payload = binary.BigEndian.AppendUint16(payload, uint16(s.ID))
		payload = binary.BigEndian.AppendUint32(payload, s.Value)
		if s.ID == HeaderTableSize {
			p.dec.SetAllowedMaxDynamicTableSize(max(s.Value, 4096))
		}
	}
	p.WriteFrame(Settings, 0, 0, payload)
	for p.sentSettings = true; p.owedAcks > 0; p.owedAcks-- {
		p.WriteSettingsAck()
	}
}

// WriteSettingsAck acknowledges SETTINGS.
func (p *Peer) WriteSettingsAck() { p.WriteFrame(Settings, Ack, 0, nil) }

// WriteWindowUpdate gives increment more octets of window to the stream, or to the connection for id 0.
func (p *Peer) WriteWindowUpdate(id, increment uint32) {
	p.WriteFrame(WindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, increment))
}

// WriteRST resets the stream.
func (p *Peer) WriteRST(id uint32, code ErrCode) {
	p.WriteFrame(RSTStream, 0, id, binary.BigEndian.AppendUint32(nil, uint32(code)))
}

// WritePing writes a PING frame, or its answer.
func (p *Peer) WritePing(ack bool, data [8]byte) {
	var flags Flags
	if ack {
		flags = Ack
	}
	p.WriteFrame(Ping, flags, 0, data[:])
}

// WriteGoAway writes a GOAWAY frame.
func (p *Peer) WriteGoAway(lastStreamID uint32, code ErrCode, debug string) {
	payload := binary.BigEndian.AppendUint32(nil, lastStreamID)
	payload = binary.BigEndian.AppendUint32(payload, uint32(code))
	p.WriteFrame(GoAway, 0, 0, append(payload, debug...))
}

// WritePriority writes a PRIORITY frame that makes stream id depend on stream dependency.
func (p *Peer) WritePriority(id, dependency uint32, weight uint8) {
	p.WriteFrame(Priority, 0, id, append(binary.BigEndian.AppendUint32(nil, dependency), weight))
}

func (p *Peer) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return Timeout
}
