package kube

import (
	"time"

	"github.com/weft-cni/weft/pkg/policy"
)

// TrimPod and TrimmedPod let a benchmark keep what the informer keeps.
var TrimPod = trimPod

// TrimmedPod is the pod in what TrimPod gives.
func TrimmedPod(obj any) policy.Pod {
	p, ok := obj.(*pod)
	if !ok {
		panic("not a trimmed pod")
	}
	return p.pod
}

// Reached compares versions.
var Reached = reached

// LagAt and HeldAt are Lag and Held at some later time.
func (w *Watcher) LagAt(now time.Time) error { return w.lagAt(now) }

// HeldAt is Held at some later time.
func (w *Watcher) HeldAt(now time.Time) (int, error) { return w.gate.heldAt(now) }

// SetSilence sets how long watches may be silent; before Run.
func (w *Watcher) SetSilence(d time.Duration) {
	for _, f := range w.feeds {
		f.silence = d
	}
}

// SetKindPause sets how often the API server is asked for kinds that it does not have; before Run.
func (w *Watcher) SetKindPause(d time.Duration) { w.cluster.pause = d }
