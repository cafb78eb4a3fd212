package ofswitch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

// SetMeters makes the switch have these meters. Meters are part of no bundle, and end with ovs-vswitchd. A
// *RejectedError means that the switch refuses such a meter, or has no room for it.
func (s *Switch) SetMeters(ctx context.Context, meters []openflow.Meter) error {
	text, err := s.ask(ctx, "dump-meters")
	if err != nil {
		return err
	}
	there := openflow.ParseMeters(text)
	for _, m := range meters {
		if slices.Contains(there, m) {
			continue
		}
		if err := s.setMeter(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (s *Switch) setMeter(ctx context.Context, m openflow.Meter) error {
	_, err := s.ask(ctx, "add-meter", m.String())
	var refused, again *RejectedError
	if errors.As(err, &refused) { // perhaps because it exists, with other limits
		_, err = s.ask(ctx, "mod-meter", m.String())
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &again):
		const text = "meter %d, which the logging of policies needs, can neither be added (%s) nor modified (%s)"
		return &RejectedError{Detail: fmt.Sprintf(text, m.ID, refused.Detail, again.Detail)}
	}
	return fmt.Errorf("set meter %d: %w", m.ID, err)
}

// HeldBack says how many packets each meter has not let through since the meter was made.
func (s *Switch) HeldBack(ctx context.Context) (map[openflow.MeterID]uint64, error) {
	text, err := s.ask(ctx, "meter-stats")
	if err != nil {
		return nil, err
	}
	return openflow.ParseMeterStats(text), nil
}

// PacketOut is a packet for the switch to process.
type PacketOut struct {
	Packet []byte // an Ethernet frame
	// InPort is the port that the packet comes from; 0 is the controller.
	InPort uint32
	// Actions are what the switch does with it, as in a flow.
	Actions []ovs.Action
}

// Send has the switch process packets, in one bundle: all or none. It may be called from any goroutine.
func (s *Switch) Send(ctx context.Context, packets []PacketOut) error {
	if len(packets) == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, p := range packets {
		actions, err := openflow.NewActions(p.Actions...)
		if err != nil {
			return fmt.Errorf("send a packet: %w", err)
		}
		from := "controller"
		if p.InPort != 0 {
			from = strconv.FormatUint(uint64(p.InPort), 10)
		}
		fmt.Fprintf(&b, "packet-out in_port=%s packet=%s actions=%s\n", from, hex.EncodeToString(p.Packet), actions)
	}
	if err := s.bundleFile(ctx, b.Bytes()); err != nil {
		return fmt.Errorf("send %d packets: %w", len(packets), err)
	}
	return nil
}

// ask calls ovs-ofctl and gives what it prints.
func (s *Switch) ask(ctx context.Context, command string, args ...string) (string, error) {
	cmd := ofctl(ctx, append([]string{command, s.target}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ask the switch: %w", failure(command, err, stderr.String()))
	}
	return stdout.String(), nil
}

// Packets calls each for every copy of a packet that flows send from now on. It returns when ctx ends or the switch
// goes away; in the second case with an error.
func (s *Switch) Packets(ctx context.Context, each func(openflow.PacketIn)) error {
	// The number lets the switch send copies on this connection; how long they are is said by the flows.
	cmd := ofctl(ctx, "--unixctl=none", "--packet-in-format=nxt_packet_in2", "monitor", s.target, strconv.Itoa(anyLength))
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("listen for packets: %w", err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	closeErr := in.Close() // the child has its own copy; ours would keep the pipe from ending
	if err = errors.Join(err, closeErr); err != nil {
		return errors.Join(fmt.Errorf("listen for packets: %w", err), out.Close())
	}
	last, readErr := readPackets(out, each)
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return out.Close()
	}
	if err := errors.Join(waitErr, readErr, out.Close()); err != nil {
		return fmt.Errorf("listen for packets: %w: %s", err, last)
	}
	return fmt.Errorf("listen for packets: the switch closed the connection: %s", last)
}

const anyLength = 65535

// readPackets reads until the program ends and returns its last line. What cannot be parsed is another program's
// packet.
func readPackets(r io.Reader, each func(openflow.PacketIn)) (last string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	var packet []string
	for lines.Scan() {
		last = lines.Text()
		switch {
		case strings.HasPrefix(last, openflow.PacketInBegin):
			packet = append(packet[:0], last)
			continue
		case len(packet) == 0:
			continue
		}
		if packet = append(packet, last); len(packet) == openflow.PacketInLines {
			if p, err := openflow.ParsePacketIn(packet[0], packet[1], packet[2]); err == nil {
				each(p)
			}
			packet = packet[:0]
		}
	}
	return last, lines.Err()
}
