// Package ofswitch delivers flows and groups to one bridge, reads them back, and watches the bridge for changes that
// others make.
//
// It speaks through the ovs-ofctl program, always in OpenFlow 1.5, whose text pkg/openflow's canonical form is, and
// with ovs-vswitchd itself where OpenFlow has no words (see daemon.go). One goroutine, the agent's, calls Apply, so
// flows and groups have one writer; the other methods (some of which set meters, forget connections or set limits)
// may be called from anywhere. The only state is a program in waiting (see bundle.go), and whether the datapath's
// cache is behind (see cache.go).
package ofswitch

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/weft-cni/weft/pkg/openflow"
)

// protocol is the OpenFlow version of every conversation. Version 1.5 has bundles that groups may be part of.
const protocol = "OpenFlow15"

// Switch is one bridge.
type Switch struct {
	ovsRunDir string
	bridge    string
	target    string // the bridge's management socket
	// watchSocket is where the program that watches is told what to watch.
	watchSocket string
	// userspace says that the bridge has the userspace datapath.
	userspace bool

	// Of Apply's goroutine:
	spare  *waiting
	behind bool // the cache may hold what the last bundle changed

	// See cache.go.
	purging atomic.Bool
	purges  atomic.Uint64
}

// Datapath is what forwards the bridge's packets.
type Datapath bool

// The values of Datapath.
const (
	Kernel    Datapath = false
	Userspace Datapath = true
)

// New gives the bridge whose management socket OVS keeps in ovsRunDir, /run/openvswitch on most hosts, which may be
// read-only. In runDir, which is the caller's own and exists, is a socket while the switch is watched.
func New(ovsRunDir, runDir, bridge string, d Datapath) *Switch {
	return &Switch{ovsRunDir: ovsRunDir, watchSocket: filepath.Join(runDir, "watch-"+bridge+".ctl"), bridge: bridge,
		target: "unix:" + filepath.Join(ovsRunDir, bridge+".mgmt"), userspace: d == Userspace}
}

// RejectedError says that the switch refused a bundle for its content, or has no room for it: nothing of it is in
// effect.
type RejectedError struct {
	// Detail is what the switch or ovs-ofctl said of the first flow at fault.
	Detail string
}

func (e *RejectedError) Error() string { return "the switch rejected the bundle: " + e.Detail }

// pieceSize is how many flows of one table the switch is asked for at once, at most, about. One thread of ovs-vswitchd
// answers, forwards what pods send in the userspace datapath, and handles the first packets of connections in between:
// 100,000 flows at once keep it from that for 0.1 to 0.5 seconds, and counting them with dump-aggregate for 0.03.
const pieceSize = 2048

// Dump reads every flow of the bridge with its counters, and every group, in pieces: flows that others change meanwhile
// may be missing or there twice.
func (s *Switch) Dump(ctx context.Context) (openflow.Contents, error) {
	var c openflow.Contents
	// Groups first: a deletion in between shows by the flows that went with the group.
	err := s.dump(ctx, "group_id=", func(line string) error {
		g, err := openflow.ParseGroup(line)
		c.Groups = append(c.Groups, g)
		return err
	}, "dump-groups", s.target)
	fullest := 0 // how many flows the fullest table has
	if err == nil {
		err = s.dump(ctx, "active=", func(line string) error {
			_, rest, _ := strings.Cut(line, "active=")
			text, _, _ := strings.Cut(rest, ",")
			active, err := strconv.Atoi(text)
			fullest = max(fullest, active)
			return err
		}, "dump-tables", s.target)
	}
	// The last bits of Weft's cookies are those of a hash: they divide its flows evenly.
	pieces := 1
	for pieces*pieceSize < fullest {
		pieces *= 2
	}
	for i := 0; i < pieces && err == nil; i++ {
		err = s.dump(ctx, "actions=", func(line string) error {
			e, err := openflow.Parse(line)
			c.Flows = append(c.Flows, e)
			return err
		}, "dump-flows", s.target, fmt.Sprintf("cookie=%#x/%#x", i, pieces-1))
	}
	if err != nil {
		return openflow.Contents{}, err
	}
	return c, nil
}

// dump calls each with the lines of the answer that have a text; the others are the reply's headings.
func (s *Switch) dump(ctx context.Context, text string, each func(line string) error, command ...string) error {
	cmd := ofctl(ctx, command...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("read the switch: %w", failure(command[0], err, stderr.String()))
	}
	for line := range strings.Lines(stdout.String()) {
		if !strings.Contains(line, text) {
			continue
		}
		if err := each(strings.TrimSpace(line)); err != nil {
			return fmt.Errorf("read the switch: %w", err)
		}
	}
	return nil
}

// Apply makes a change in one atomic bundle: packets meet the old flows and groups or the new ones, never a mixture.
// When it returns without error the switch has committed all of it. A *RejectedError means that nothing was changed
// because of the flows and groups themselves, or because the switch has no room for them; any other error means that
// the switch could not be reached, or did not take any bundle, and its state is unknown. Apply of an empty change does
// what an earlier call had to leave undone.
func (s *Switch) Apply(ctx context.Context, d openflow.Delta) error {
	if d.Empty() {
		return s.refresh(ctx)
	}
	// First: OVS 3.1 takes flows whose meter does not exist, and limits nothing.
	if len(d.Meters) > 0 {
		if err := s.SetMeters(ctx, d.Meters); err != nil {
			return fmt.Errorf("apply flows that copy packets: %w", err)
		}
	}
	var b bytes.Buffer
	// The switch looks at each line as if those before it were done, so groups come before the flows that use them.
	for _, g := range d.SetGroups {
		// The whole group, never single buckets: after insert_bucket OVS spreads dp_hash unevenly (ovs-issues #357).
		b.WriteString("group add_or_mod ")
		b.WriteString(g.String())
		b.WriteByte('\n')
	}
	for _, f := range d.Delete {
		// The cookie protects a flow that another program put in the place of Weft's.
		fmt.Fprintf(&b, "flow delete_strict cookie=%#x/-1,%s\n", f.Cookie, f.Key)
	}
	for _, f := range d.Forget {
		if f.Match == (openflow.Match{}) {
			fmt.Fprintf(&b, "flow delete cookie=%#x/-1,table=%d\n", f.Cookie, f.Table)
		} else {
			fmt.Fprintf(&b, "flow delete_strict cookie=%#x/-1,%s\n", f.Cookie, f.Key)
		}
	}
	for _, f := range d.Set {
		b.WriteString("flow add ")
		b.WriteString(f.String())
		b.WriteByte('\n')
	}
	// Last, not only because a group takes the flows with it that use it: when OVS 3.1 refuses a line behind such a
	// deletion, it dies while it takes the deletion back (assertion group != NULL in ofproto_rule_insert__). Deletions are
	// never refused.
	for _, id := range d.DeleteGroups {
		fmt.Fprintf(&b, "group delete group_id=%d\n", id)
	}
	if err := s.bundle(ctx, b.Bytes()); err != nil {
		return fmt.Errorf("apply %d flows, %d groups and %d deletions: %w", len(d.Set), len(d.SetGroups),
			len(d.Delete)+len(d.DeleteGroups)+len(d.Forget), err)
	}
	s.behind = true
	return s.refresh(ctx)
}

// rejection recognizes the two ways in which a bundle is refused because of its content: ovs-ofctl cannot parse a line
// of its standard input, or the switch answers with an OpenFlow error about a flow (FMFC), a match (BMC), an action or
// instruction (BAC, BIC), a group (GMFC), a meter (MMFC) or a property of these (BPC). Others are about the
// conversation: a bundle that waited too long for a busy switch (OFPBFC_TIMEOUT), the role or permission of the
// connection (OFPBRC_IS_SLAVE).
var rejection = regexp.MustCompile(
	`(?m)^(ovs-ofctl: -:\d+: .*|(Error|OFPT_ERROR .*:) (OFP|NX)(FMFC|BMC|BAC|BIC|GMFC|MMFC|BPC)_.*)$`)

// ofctl is a call of ovs-ofctl. Without --no-names it would ask the switch for its ports and tables first, on
// connections of their own, each of which waits for whatever ovs-vswitchd's main thread is busy with.
func ofctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ovs-ofctl", append([]string{"-O", protocol, "--no-names"}, args...)...)
}

// failure is what a call that ended with err means, given what it wrote on standard error.
func failure(command string, err error, stderr string) error {
	if detail := rejection.FindString(stderr); detail != "" {
		return &RejectedError{Detail: detail}
	}
	return fmt.Errorf("ovs-ofctl %s: %w: %s", command, err, strings.TrimSpace(stderr))
}
