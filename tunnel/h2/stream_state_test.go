package h2

import "testing"

// TestStreamState walks every state through every event (RFC 9113, section 5.1).
func TestStreamState(t *testing.T) {
	type row [5]streamState // send H, recv H, send ES, recv ES, R
	const (
		idle = stateIdle
		rl   = stateReservedLocal
		rr   = stateReservedRemote
		open = stateOpen
		hcl  = stateHalfClosedLocal
		hcr  = stateHalfClosedRemote
		cl   = stateClosed
	)
	table := map[streamState]row{
		idle: {open, open, idle, idle, cl},
		rl:   {hcr, rl, rl, rl, cl},
		rr:   {rr, hcl, rr, rr, cl},
		open: {open, open, hcl, hcr, cl},
		hcl:  {hcl, hcl, hcl, cl, cl},
		hcr:  {hcr, hcr, cl, hcr, cl},
		cl:   {cl, cl, cl, cl, cl},
	}
	if len(table) != int(stateClosed)+1 {
		t.Fatalf("table has %d states, want all %d", len(table), stateClosed+1)
	}
	for from, want := range table {
		t.Run(from.String(), func(t *testing.T) {
			got := row{from.sendHeaders(), from.recvHeaders(), from.sendEnd(), from.recvEnd(), from.reset()}
			if got != want {
				t.Errorf("after send H, recv H, send ES, recv ES, R: %v, want %v", got, want)
			}
		})
	}
	for _, c := range []struct {
		s          streamState
		send, recv bool
	}{
		{idle, false, false}, {rl, false, false}, {rr, false, false}, {open, true, true},
		{hcl, false, true}, {hcr, true, false}, {cl, false, false},
	} {
		if c.s.canSend() != c.send || c.s.canReceive() != c.recv {
			t.Errorf("%v: canSend %v, canReceive %v, want %v, %v", c.s, c.s.canSend(), c.s.canReceive(), c.send, c.recv)
		}
	}
}
