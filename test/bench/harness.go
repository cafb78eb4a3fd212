package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/test/bench/result"
)

// values are what one measurement found, by metric.
type values map[string]float64

// entry is one system in one case.
type entry struct {
	system  string
	measure func(ctx context.Context, round int) (values, error)
}

// benchCase is something that several systems do.
type benchCase struct {
	name    string
	entries []entry
}

// harness runs cases. One goroutine uses it.
type harness struct {
	rounds int
	// limit bounds one measurement.
	limit time.Duration
	// progress is told of each case of each round.
	progress io.Writer
}

// run measures all cases in every round. Within a case of a round the systems take turns, and each round another one is
// first. A measurement that fails is noted in the run, and the others go on; the error is the context's end only.
func (h harness) run(ctx context.Context, cases []benchCase, into *result.Run) error {
	for round := range h.rounds {
		for i, c := range cases {
			var figures []string
			for j := range c.entries {
				e := c.entries[(round+j)%len(c.entries)]
				got, err := h.measure(ctx, e, round)
				if ctx.Err() != nil {
					return fmt.Errorf("round %d, %s, %s: %w", round+1, c.name, e.system, context.Cause(ctx))
				}
				if err != nil {
					into.Failures = append(into.Failures, result.Failure{Case: c.name, System: e.system, Round: round + 1,
						Error: err.Error()})
					figures = append(figures, e.system+" failed")
					continue
				}
				for _, metric := range slices.Sorted(maps.Keys(got)) {
					into.Add(c.name, metric, e.system, round, got[metric])
				}
				figures = append(figures, fmt.Sprintf("%s %s", e.system, got))
			}
			fmt.Fprintf(h.progress, "round %d of %d, case %d of %d, %s: %s\n", round+1, h.rounds, i+1, len(cases), c.name,
				strings.Join(figures, ", "))
		}
	}
	return nil
}

func (h harness) measure(ctx context.Context, e entry, round int) (values, error) {
	ctx, cancel := context.WithTimeout(ctx, h.limit)
	defer cancel()
	return e.measure(ctx, round)
}

// String is the metric that is first by name, which is a case's main one.
func (v values) String() string {
	for _, name := range slices.Sorted(maps.Keys(v)) {
		return result.Number(v[name])
	}
	return "nothing"
}

// choose leaves the cases and systems that both filters match, and no case without systems.
func choose(cases []benchCase, kase, system interface{ MatchString(string) bool }) []benchCase {
	var chosen []benchCase
	for _, c := range cases {
		c.entries = slices.DeleteFunc(slices.Clone(c.entries), func(e entry) bool { return !system.MatchString(e.system) })
		if kase.MatchString(c.name) && len(c.entries) > 0 {
			chosen = append(chosen, c)
		}
	}
	return chosen
}
