package h2_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// HAProxy's model, "graceful GOAWAY at 75 %": a peer that is odd often is asked to leave, what is open lives
// on, and only at the whole count the connection ends.
func TestOddities_PeerIsAskedToLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		p.tunnel(1)
		for i := range uint32(70) {
			p.WriteHeaders(3+2*i, true, h2test.Fields(":method", "GET")...)
			p.wantMalformed(3+2*i, "no path")
		}
		for _, f := range settle(p) {
			if f.Type == h2test.GoAway {
				t.Errorf("after 70 of 100: %v, want nothing yet", f)
			}
		}
		for i := range uint32(10) {
			p.WriteHeaders(201+2*i, true, h2test.Fields(":method", "GET")...)
			p.wantMalformed(201+2*i, "no path")
		}
		if f := p.WantGoAway("80 of 100", h2test.NoError); f.LastStreamID() != 1<<31-1 {
			t.Errorf("GOAWAY with last stream %d, want the greatest: nothing under way is lost", f.LastStreamID())
		}
		p.wantEcho(1, "80 of 100")
		p.wantServes(1001, "sent before the GOAWAY was seen")
		flood(t, p, 25, func(i uint32) { p.WriteHeaders(2001+2*i, true, h2test.Fields(":method", "GET")...) })
	})
}

// A bit of everything is one count.
func TestOddities_OneCount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		for i := range uint32(60) {
			p.WriteHeaders(1+2*i, true, h2test.Fields(":method", "GET")...)
		}
		for range 350 {
			p.WritePriority(1, 3, 1)
		}
		settle(p)
		p.wantServes(1001, "60 % of one and 35 % of another")
		flood(t, p, 51, func(uint32) { p.WriteGoAway(0, h2test.NoError, "") })
	})
}

// It drains: whoever waits is served as before.
func TestOddities_Forgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		for round := range uint32(5) {
			for i := range uint32(60) {
				p.WriteHeaders(1+200*round+2*i, true, h2test.Fields(":method", "GET")...)
			}
			settle(p)
			time.Sleep(6 * time.Second)
		}
		p.WantIdle("60 at a time, six seconds between, are no reason for GOAWAY")
		p.wantServes(2001, "300 malformed requests in half a minute")
	})
}

// RST_STREAM may cross the end of its stream, once each, however busy the connection is.
func TestOddities_LateResets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		for i := range uint32(3000) {
			p.wantServes(1+2*i, "a stream that ends")
			p.WriteRST(1+2*i, h2test.Cancel)
		}
		p.WantIdle("3000 crossed resets are no reason for GOAWAY")
		p.wantServes(10001, "3000 crossed resets")
		flood(t, p, 1001, func(uint32) { p.WriteRST(1, h2test.Cancel) })
	})
}

// Our client role leaves an odd server as well: no new streams, Retired tells the pool, what is open goes on.
func TestOddities_Client(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil)
		s := p.open(connectTo("a:1"), false)
		p.WriteHeaders(1, false, h2test.Response("200")...)
		wantStatus(t, s, 200)
		for range 800 {
			p.WritePriority(1, 3, 1)
		}
		synctest.Wait()
		select {
		case <-p.conn.Retired():
		default:
			t.Error("Retired is not closed after 800 of 1000 PRIORITY frames")
		}
		if _, err := p.conn.Open(t.Context(), connectTo("b:1"), false); !errors.Is(err, h2.ErrDraining) {
			t.Errorf("Open = %v, want ErrDraining", err)
		}
		p.WriteData(1, false, []byte("still here"))
		buf := make([]byte, 20)
		if n, err := s.Read(buf); string(buf[:n]) != "still here" {
			t.Errorf("Read = %q, %v", buf[:n], err)
		}
	})
}
