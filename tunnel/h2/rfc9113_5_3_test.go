package h2_test

import (
	"encoding/binary"
	"testing"

	"culvert/tunnel/h2/h2test"
)

// "This update to HTTP/2 deprecates the priority signaling" (section 5.3.2); "Sending or receiving a
// PRIORITY frame does not affect the state of any stream. The PRIORITY frame can be sent on a stream in any
// state" (section 6.3).
func TestRFC9113_5_3_PriorityIsIgnored(t *testing.T) {
	runCases(t, []specCase{
		{"PRIORITY in every state", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteHeaders(3, true, h2test.Request("GET", "/hang")...)
			p.wantServes(5, "to be closed")
			for id := uint32(1); id <= 12; id++ {
				p.WritePriority(id, 1<<31|id+1, 255)
			}
			p.WantIdle("PRIORITY is ignored")
			p.wantEcho(1, "PRIORITY")
			p.wantServes(7, "PRIORITY on an idle stream does not use it up")
		}},
		{"HEADERS with priority", func(t *testing.T) {
			p := server(t, nil)
			block := p.Encode(h2test.Request("GET", "/")...)
			payload := append(binary.BigEndian.AppendUint32(nil, 1<<31|77), 255)
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream|h2test.WithPriority, 1, append(payload, block...))
			p.WantHeaders(1, "priority signals in HEADERS are ignored", map[string]string{":status": "200"})
		}},
		{"HEADERS with priority and padding", func(t *testing.T) {
			p := server(t, nil)
			block := p.Encode(h2test.Request("GET", "/")...)
			payload := append([]byte{3}, binary.BigEndian.AppendUint32(nil, 77)...)
			payload = append(append(append(payload, 255), block...), 0, 0, 0)
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream|h2test.WithPriority|h2test.Padded, 1, payload)
			p.WantHeaders(1, "priority and padding", map[string]string{":status": "200"})
		}},
	})
}

// Section 6.3, and RFC 7540, section 5.3.1, for a stream that depends on itself: "An endpoint MUST treat
// this as a stream error (Section 5.4.2) of type PROTOCOL_ERROR."
func TestRFC9113_6_3_Priority(t *testing.T) {
	runCases(t, []specCase{
		{"on stream 0", func(t *testing.T) {
			p := server(t, nil)
			p.WritePriority(0, 1, 1)
			p.WantConnError("PRIORITY with a stream identifier of 0x00", h2test.ProtocolError)
		}},
		{"length 4", func(t *testing.T) { wrongPriorityLength(t, 4) }},
		{"length 6", func(t *testing.T) { wrongPriorityLength(t, 6) }},
		{"length 0", func(t *testing.T) { wrongPriorityLength(t, 0) }},
		{"length 100", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.Priority, 0, 1, make([]byte, 100))
			p.wantStreamOrConnError(1, "PRIORITY of a wrong length", h2test.FrameSizeError)
		}},
		{"on itself", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			p.WritePriority(3, 3, 1)
			p.WantRST(3, "a stream cannot depend on itself", h2test.ProtocolError)
			p.wantEcho(1, "a stream error")
			p.wantServes(5, "a stream error")
		}},
		{"on itself in HEADERS", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			block := p.Encode(h2test.Request("GET", "/")...)
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream|h2test.WithPriority, 3,
				append([]byte{0, 0, 0, 3, 1}, block...))
			p.WantRST(3, "a stream cannot depend on itself", h2test.ProtocolError)
			p.wantEcho(1, "a stream error")
			p.wantServes(5, "a stream error")
		}},
	})
}

// "A PRIORITY frame with a length other than 5 octets MUST be treated as a stream error (Section 5.4.2) of
// type FRAME_SIZE_ERROR" (section 6.3).
func wrongPriorityLength(t *testing.T, length int) {
	t.Helper()
	p := server(t, nil)
	p.tunnel(1)
	p.tunnel(3)
	p.WriteFrame(h2test.Priority, 0, 3, make([]byte, length))
	p.WantRST(3, "PRIORITY of a wrong length", h2test.FrameSizeError)
	p.wantEcho(1, "a stream error")
	p.wantServes(5, "a stream error")
}
