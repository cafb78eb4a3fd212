package ovsdb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// The part of OpenFlow 1.3 (ONF TS-006, section 7) for port states.
const (
	ofVersion        = 4
	ofHello          = 0
	ofEchoRequest    = 2
	ofEchoReply      = 3
	ofGetConfig      = 7
	ofConfigReply    = 8
	ofSetConfig      = 9
	ofPortStatus     = 12
	ofPortMod        = 16
	ofMultipart      = 18
	ofMultipartReply = 19
	ofSetAsync       = 28

	ofMultipartPortDesc = 13
	ofPortMax           = 0xffffff00 // higher numbers are reserved, such as LOCAL
	ofHeaderLen         = 8
	ofPortLen           = 64
	ofPortDelete        = 1
	// ofMaxLen bounds a message. OpenFlow's length field has 16 bits.
	ofMaxLen = 1<<16 - 1

	ofPortDown = 1 << 0
	// ofPortBlocked is OFPPC_PORT_DOWN, NO_RECV, NO_FWD and NO_PACKET_IN.
	ofPortBlocked = ofPortDown | 1<<2 | 1<<5 | 1<<6
)

// portConfig keeps the bridge's ports unblocked: it reverts "ovs-ofctl mod-port PORT
// down|no-forward|no-receive|no-packet-in" at once, and also "ip link set PORT down", which OVS reports in the same
// bit. The database holds none of these states. PORT_STATUS reports changes, PORT_DESC the initial state. One goroutine
// calls run and another ask; both end with its connection.
type portConfig struct {
	conn io.ReadWriter
	log  *slog.Logger
	// removed reports that OVSDB has no port of that name: its link goes down because it is removed.
	removed func(name string) bool
	// changing reports that the agent itself is adding or removing the pod's port of that name.
	changing func(name string) bool
	// changed is called when the switch treats fragments differently than at the last reply (set-frags).
	changed func()

	asked     bool // the configuration was received at least once
	fragments uint16
}

func ofMessage(kind byte, body []byte) []byte {
	m := make([]byte, ofHeaderLen, ofHeaderLen+len(body))
	m[0], m[1] = ofVersion, kind
	binary.BigEndian.PutUint16(m[2:], uint16(ofHeaderLen+len(body)))
	return append(m, body...)
}

// begin requests port changes, no other asynchronous messages, and the current ports. A management connection gets
// asynchronous messages only with a miss_send_len, which must be set without changing the flags in the same message
// (set-frags).
func (p *portConfig) begin() error {
	async := make([]byte, 24) // masks of packet-in, port status and flow removed, each as master and as slave
	const everyReason = 7
	binary.BigEndian.PutUint32(async[8:], everyReason)
	binary.BigEndian.PutUint32(async[12:], everyReason)
	desc := make([]byte, 8)
	binary.BigEndian.PutUint16(desc, ofMultipartPortDesc)
	for _, m := range [][]byte{
		ofMessage(ofHello, nil), ofMessage(ofSetAsync, async), ofMessage(ofGetConfig, nil), ofMessage(ofMultipart, desc),
	} {
		if _, err := p.conn.Write(m); err != nil {
			return err
		}
	}
	return nil
}

// configEvery is the time between two requests for the switch's configuration: no message reports its changes.
const configEvery = time.Second

// ask requests the switch's configuration once per configEvery, until the context ends or the switch closes the
// connection. It may run beside run, which reads the replies.
func (p *portConfig) ask(ctx context.Context) {
	ticker := time.NewTicker(configEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := p.conn.Write(ofMessage(ofGetConfig, nil)); err != nil {
			return // run notices it, too
		}
	}
}

// run reads messages until the switch closes the connection, and repairs ports.
func (p *portConfig) run() error {
	var header [ofHeaderLen]byte
	buffer := make([]byte, ofMaxLen)
	for {
		if _, err := io.ReadFull(p.conn, header[:]); err != nil {
			return err
		}
		length := int(binary.BigEndian.Uint16(header[2:]))
		if length < ofHeaderLen {
			return fmt.Errorf("OpenFlow message of %d bytes", length)
		}
		body := buffer[:length-ofHeaderLen]
		if _, err := io.ReadFull(p.conn, body); err != nil {
			return err
		}
		if err := p.receive(header, body); err != nil {
			return err
		}
	}
}

func (p *portConfig) receive(header [ofHeaderLen]byte, body []byte) error {
	switch kind := header[1]; {
	case kind == ofEchoRequest:
		reply := ofMessage(ofEchoReply, body)
		copy(reply[4:8], header[4:8])
		_, err := p.conn.Write(reply)
		return err
	case kind == ofConfigReply && len(body) >= 4:
		before, asked := p.fragments, p.asked
		p.fragments, p.asked = binary.BigEndian.Uint16(body), true
		if asked {
			if p.fragments != before {
				p.changed()
			}
			return nil
		}
		config := []byte{body[0], body[1], 0, 1}
		// Request PORT_DESC again: changes between the first reply and now were not reported.
		desc := make([]byte, 8)
		binary.BigEndian.PutUint16(desc, ofMultipartPortDesc)
		_, err := p.conn.Write(append(ofMessage(ofSetConfig, config), ofMessage(ofMultipart, desc)...))
		return err
	case kind == ofPortStatus && len(body) >= 8+ofPortLen && body[0] != ofPortDelete:
		return p.repair(body[8:])
	case kind == ofMultipartReply && len(body) >= 8 && binary.BigEndian.Uint16(body) == ofMultipartPortDesc:
		for ports := body[8:]; len(ports) >= ofPortLen; ports = ports[ofPortLen:] {
			if err := p.repair(ports); err != nil {
				return err
			}
		}
	}
	return nil
}

// repair clears the bits that block a port. pkg/host sets the gateway's link up, and nothing sends through the LOCAL
// port.
func (p *portConfig) repair(port []byte) error {
	number, config := binary.BigEndian.Uint32(port), binary.BigEndian.Uint32(port[32:])
	blocked := config & ofPortBlocked
	if number == model.PortGateway {
		blocked &^= ofPortDown
	}
	if blocked == 0 || number >= ofPortMax {
		return nil
	}
	name := string(port[16:32])
	for i := range name {
		if name[i] == 0 {
			name = name[:i]
			break
		}
	}
	pod := number >= model.PortPodMin
	if pod && p.removed(name) {
		return nil
	}
	log := p.log.With("port", name, "number", number, "config", fmt.Sprintf("%#x", config))
	if pod && p.changing(name) {
		// Its link is down because an ADD is rolled back, or a DEL waits for OVSDB. It may be another program all the
		// same, and nothing reports the port again when an ADD succeeds.
		log.Debug("unblocking a port that is being added or removed")
	} else {
		log.Warn("another program blocked a port of the bridge (ovs-ofctl mod-port, or link down); unblocking it")
	}
	mod := make([]byte, 32)
	binary.BigEndian.PutUint32(mod, number)
	copy(mod[8:14], port[8:14]) // OVS compares the hardware address
	binary.BigEndian.PutUint32(mod[20:], blocked)
	_, err := p.conn.Write(ofMessage(ofPortMod, mod))
	return err
}
