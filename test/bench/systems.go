package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// systems are all that stands. What the filters leave out is not started.
type systems struct {
	networks    []*network
	attachment  *attachment
	programming *programming
}

// chosen are the cases that the filters leave.
func (o options) chosen(cases []benchCase) []benchCase {
	return choose(cases, regexp.MustCompile(o.cases), regexp.MustCompile(o.systems))
}

// starter is a network that can be started.
type starter struct {
	system string
	paths  []string
	start  func(context.Context) (*network, error)
}

// starters are the networks, in the order in which they are shown.
func (o options) starters() []starter {
	own := []string{result.SameNode, result.AcrossNodes, result.Service, result.Policies}
	weft := func(system, suffix, agent string) starter {
		return starter{system, own, func(ctx context.Context) (*network, error) {
			return o.startWeft(ctx, system, o.name+suffix, filepath.Join(o.programs, agent))
		}}
	}
	peers := func(system, suffix string, flows []string) starter {
		p := peer{system: system, group: sandbox.Group(o.name + suffix), datapath: datapath.Datapath(o.Datapath),
			tunnel: o.Tunnel, flows: flows}
		return starter{system, own[:2], p.start}
	}
	all := []starter{weft(result.Weft, "", "weft-agent")}
	if _, err := os.Stat(filepath.Join(o.programs, againstName)); err == nil || o.against != "" {
		all = append(all, weft(result.WeftAgainst, "ag", againstName))
	}
	return append(all, peers(result.OVS, "no", stateless), peers(result.OVSCt, "ct", stateful),
		peers(result.Linux, "lx", nil))
}

// start brings up what the filters leave.
func (o options) start(ctx context.Context, s *systems) error {
	var chosen []starter
	for _, st := range o.starters() {
		n := &network{system: st.system}
		for _, p := range st.paths {
			n.paths = append(n.paths, path{name: p})
		}
		if len(o.chosen(o.traffic().cases([]*network{n}))) > 0 {
			chosen = append(chosen, st)
		}
	}
	s.networks = make([]*network, len(chosen))
	starting, startCtx := errgroup.WithContext(ctx)
	for i, st := range chosen {
		starting.Go(func() (err error) {
			s.networks[i], err = st.start(startCtx)
			return err
		})
	}
	err := starting.Wait()
	s.networks = slices.DeleteFunc(s.networks, func(n *network) bool { return n == nil })
	if err != nil {
		return err
	}
	if len(o.chosen((&attachment{contenders: newContenders()}).cases())) > 0 {
		if s.attachment, err = o.startAttachment(ctx); err != nil {
			return err
		}
	}
	if len(o.chosen((&programming{sets: o.objectSets()}).cases())) > 0 {
		s.programming, err = o.startProgramming(ctx)
	}
	return err
}

func (o options) traffic() traffic {
	return traffic{duration: time.Duration(o.Seconds * float64(time.Second)), connections: o.Connections,
		family: o.AddressFamily}
}

// cases are those of all systems that stand.
func (s *systems) cases(o options) []benchCase {
	cases := o.traffic().cases(s.networks)
	if s.attachment != nil {
		cases = append(cases, s.attachment.cases()...)
	}
	if s.programming != nil {
		cases = append(cases, s.programming.cases()...)
	}
	return cases
}

// showCases lists the cases and their systems without starting any.
func (o options) showCases(w io.Writer) error {
	s := systems{attachment: &attachment{contenders: newContenders()}, programming: &programming{sets: o.objectSets()}}
	for _, st := range o.starters() {
		n := &network{system: st.system}
		for _, p := range st.paths {
			n.paths = append(n.paths, path{name: p})
		}
		s.networks = append(s.networks, n)
	}
	for _, c := range o.chosen(s.cases(o)) {
		var names []string
		for _, e := range c.entries {
			names = append(names, e.system)
		}
		if _, err := fmt.Fprintf(w, "%-28s %s\n", c.name, strings.Join(names, ", ")); err != nil {
			return err
		}
	}
	return nil
}

// count adds the counts of what was measured.
func (s *systems) count(ctx context.Context, o options, run *result.Run) error {
	for _, n := range s.networks {
		for _, p := range n.paths {
			if _, ok := run.Find("connections/"+p.name, "connections", n.system); !ok || len(n.switches) == 0 {
				continue
			}
			found, err := o.traffic().counts(ctx, n, p)
			if ctx.Err() != nil {
				return fmt.Errorf("count %s, %s: %w", n.system, p.name, err)
			}
			if err != nil {
				run.Failures = append(run.Failures, result.Failure{Case: "connections/" + p.name, System: n.system,
					Error: "count: " + err.Error()})
				continue
			}
			run.Counts = append(run.Counts, found...)
		}
	}
	if s.programming == nil {
		return nil
	}
	found, err := s.programming.counts(ctx)
	run.Counts = append(run.Counts, found...)
	return err
}

// stop takes everything down.
func (s *systems) stop(ctx context.Context) error {
	var errs []error
	for _, n := range s.networks {
		errs = append(errs, n.down(ctx))
	}
	if s.attachment != nil {
		errs = append(errs, s.attachment.close())
	}
	if s.programming != nil {
		errs = append(errs, s.programming.stop())
	}
	return errors.Join(errs...)
}
