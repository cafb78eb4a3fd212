package ovsdb

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// connection is both halves of a connection to a fake switch.
type connection struct {
	*bytes.Reader              // from the switch
	sent          bytes.Buffer // to it
}

func (c *connection) Write(b []byte) (int, error) { return c.sent.Write(b) }

// portDown is the message that a port's link is down.
func portDown(number uint32, name string) []byte {
	body := make([]byte, 8+ofPortLen)
	port := body[8:]
	binary.BigEndian.PutUint32(port, number)
	copy(port[16:32], name)
	binary.BigEndian.PutUint32(port[32:], ofPortDown)
	return ofMessage(ofPortStatus, body)
}

// TestPortBeingChanged: a port that the agent itself is adding or removing is unblocked without a word about another
// program, whether the switch reports a change of it or, after a restart, all of its ports. One that OVSDB no longer
// has is left alone.
func TestPortBeingChanged(t *testing.T) {
	const number = model.PortPodMin + 7
	for _, tc := range []struct {
		name              string
		removed, changing bool
		unblocked, warned bool
	}{
		{"attached", false, false, true, true},
		{"being added or removed", false, true, true, false},
		{"removed", true, false, false, false},
		{"removed, DEL not at its end", true, true, false, false},
	} {
		status := portDown(number, "web")
		desc := make([]byte, 8, 8+ofPortLen)
		binary.BigEndian.PutUint16(desc, ofMultipartPortDesc)
		ports := ofMessage(ofMultipartReply, append(desc, status[ofHeaderLen+8:]...))
		for message, bytesOf := range map[string][]byte{"PORT_STATUS": status, "PORT_DESC": ports} {
			conn := &connection{Reader: bytes.NewReader(bytesOf)}
			var log strings.Builder
			asked := func(answer bool) func(string) bool {
				return func(name string) bool {
					if name != "web" {
						t.Errorf("asked for port %q", name)
					}
					return answer
				}
			}
			p := &portConfig{conn: conn, log: slog.New(slog.NewTextHandler(&log, nil)), removed: asked(tc.removed),
				changing: asked(tc.changing)}
			_ = p.run() // ends with the connection
			sent := conn.sent.Bytes()
			if unblocked := len(sent) > 0 && sent[1] == ofPortMod; unblocked != tc.unblocked {
				t.Errorf("%s, %s: unblocked %t", tc.name, message, unblocked)
			}
			if warned := strings.Contains(log.String(), "another program blocked a port"); warned != tc.warned || !warned &&
				log.Len() > 0 {
				t.Errorf("%s, %s: logged %q", tc.name, message, log.String())
			}
		}
	}
	// Ports that no pod has are every node's, and never in the middle of a change.
	conn := &connection{Reader: bytes.NewReader(portDown(model.PortGeneve, "weft-geneve"))}
	var log strings.Builder
	never := func(string) bool { t.Error("asked for a port that every node has"); return true }
	p := &portConfig{conn: conn, log: slog.New(slog.NewTextHandler(&log, nil)), removed: never, changing: never}
	_ = p.run()
	if conn.sent.Len() == 0 || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("a tunnel's port: sent %d bytes, logged %q", conn.sent.Len(), log.String())
	}
}
