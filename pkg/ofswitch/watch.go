package ofswitch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Event is a flow or a group that Weft or another program added, changed or deleted.
type Event struct {
	// Deleted is false for what is in the switch now.
	Deleted bool
	Table   openflow.TableID
	Match   openflow.Match
	Actions openflow.Actions
	// Group is the group that the event is about; without a number the event is about a flow. Of a deleted group only the
	// number is known; it may be AllGroups.
	Group openflow.Group
}

// AllGroups is the number in the event of a deletion of all groups, and of a change of we cannot know which.
const AllGroups openflow.GroupID = 0xfffffffc

// Watch calls changed for every change of flows and groups from now on, and ready once, from another goroutine, when
// the watch is in place. It returns when ctx ends or the switch goes away; in the second case with an error, and
// whatever happened since is unknown.
func (s *Switch) Watch(ctx context.Context, ready func(), changed func(Event)) error {
	// The flow monitor knows nothing of groups; that it is told of them, too, is asked for through this socket.
	socket := s.watchSocket
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return fmt.Errorf("watch the switch: %w", err)
	}
	cmd := ofctl(ctx, "--unixctl="+socket, "monitor", s.target, "watch:!initial")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it takes its socket with it
	// ovs-ofctl prints the reply to its request on standard output, and every event on standard error.
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("watch the switch: %w", err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	closeErr := in.Close() // the child has its own copy; ours would keep the pipe from ending
	if err = errors.Join(err, closeErr); err != nil {
		return errors.Join(fmt.Errorf("watch the switch: %w", err), out.Close())
	}
	// Beside the reading: the program opens its socket only when the initial flows are printed, and printing blocks until
	// the output is read.
	asking, printed := context.WithCancel(ctx)
	asked := make(chan error, 1)
	go func() {
		err := watchGroups(asking, socket)
		if err == nil {
			ready()
		} else {
			_ = cmd.Cancel() // it may have ended by itself
		}
		asked <- err
	}()
	last, readErr := readEvents(out, changed)
	printed()
	groupErr := <-asked
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return out.Close()
	}
	if err := errors.Join(groupErr, waitErr, readErr, out.Close()); err != nil {
		return fmt.Errorf("watch the switch: %w: %s", err, last)
	}
	return fmt.Errorf("watch the switch: the switch closed the connection: %s", last)
}

// setAsync is OpenFlow 1.5's OFPT_SET_ASYNC: of the group changes that others make, in bundles or not, the switch must
// tell this connection (OFPACPT_REQUESTFORWARD_MASTER and _SLAVE, each with the bit OFPRFR_GROUP_MOD).
const setAsync = "061c0018" + "00000009" + "000a000800000001" + "000b000800000001"

// askPause is how long watchGroups waits for the program's socket before it tries again.
const askPause = 20 * time.Millisecond

// watchGroups makes the program that watches ask for groups, too, as soon as it listens: the socket appears in the
// directory a moment before that.
func watchGroups(ctx context.Context, socket string) error {
	out, err := unixctl.Call(ctx, socket, "ofctl/send", setAsync)
	for errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		select {
		case <-ctx.Done():
			return errors.New("ask for changes of groups: ovs-ofctl ended before it listened")
		case <-time.After(askPause):
		}
		out, err = unixctl.Call(ctx, socket, "ofctl/send", setAsync)
	}
	if err == nil && strings.TrimSpace(out) != "sent" {
		err = fmt.Errorf("an unknown answer: %s", out)
	}
	if err != nil {
		return fmt.Errorf("ask for changes of groups: %w", err)
	}
	return nil
}

// readEvents reads until the program ends and returns its last line, which says why when it failed.
func readEvents(r io.Reader, changed func(Event)) (last string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		last = lines.Text()
		if e, ok := parseEvent(last); ok {
			changed(e)
		}
	}
	return last, lines.Err()
}

func parseEvent(line string) (Event, bool) {
	if strings.HasPrefix(line, "OFPT_REQUESTFORWARD") && strings.Contains(line, "decode error") {
		// OVS 3.1 cannot read what it sends of buckets inserted into or removed from some groups. We never do that.
		return Event{Group: openflow.Group{ID: AllGroups}}, true
	}
	kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch kind {
	case "event=ADDED", "event=MODIFIED", "event=DELETED":
	case "ADD", "MOD", "ADD_OR_MOD", "DEL", "INSERT_BUCKET", "REMOVE_BUCKET":
		return parseGroupEvent(kind, rest)
	default:
		return Event{}, false // headings and the initial flows
	}
	if reason, after, _ := strings.Cut(rest, " "); strings.HasPrefix(reason, "reason=") {
		rest = after
	}
	if !strings.Contains(rest, "actions=") {
		rest += " actions=drop" // which is how a monitor prints none
	}
	flow, err := openflow.Parse(rest)
	if err != nil {
		return Event{}, false
	}
	return Event{Deleted: kind == "event=DELETED", Table: flow.Table, Match: flow.Match, Actions: flow.Actions}, true
}

func parseGroupEvent(kind, rest string) (Event, bool) {
	if at := strings.Index(rest, "group_id="); at > 0 {
		rest = rest[at:] // behind command_bucket_id
	}
	// The comma is missing where nothing follows; another does no harm to a number.
	g, err := openflow.ParseGroup(rest + ",")
	if err != nil {
		return Event{}, false
	}
	switch kind {
	case "DEL":
		return Event{Deleted: true, Group: openflow.Group{ID: g.ID}}, true
	case "INSERT_BUCKET", "REMOVE_BUCKET":
		return Event{Group: openflow.Group{ID: g.ID}}, true // which we never do
	}
	return Event{Group: g}, true
}
