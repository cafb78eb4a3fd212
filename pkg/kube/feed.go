package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// failingAfter is how long a watch may fail before that is a problem. A restart of the API server takes less.
	failingAfter = 30 * time.Second
	// silentAfter is how long a watch may be silent without an error. API servers send a bookmark about once a minute
	// (k8s.io/apiserver, bookmarkFrequency).
	silentAfter = 150 * time.Second
)

// feed follows the objects of one resource, and how current they are. Any goroutine may use it.
type feed struct {
	resource string

	mu    sync.Mutex
	begun time.Time // when it was first asked for
	heard time.Time // when a list ended, a watch began, or an event or bookmark came
	err   error     // of the last list or watch, unless a watch has begun since
}

// FeedStatus says how current the objects of one resource are.
type FeedStatus struct {
	Resource string
	// Heard is when the API server last told anything of the resource; zero when it has not yet.
	Heard time.Time
	// Waiting is how long ago that is, or that the resource was first asked for.
	Waiting time.Duration
	// Err is why the last list or watch failed, unless a watch has begun since.
	Err error
}

// problem says for how long there have been no news, and why, or "". The text does not change while the fault lasts.
func (s FeedStatus) problem() string {
	switch {
	case s.Err != nil && s.Waiting > failingAfter:
		return failingAfter.String() + ": " + s.Err.Error()
	case s.Waiting > silentAfter:
		return silentAfter.String() + ", although the API server sends a bookmark every minute"
	}
	return ""
}

func (f *feed) status(now time.Time) FeedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := FeedStatus{Resource: f.resource, Heard: f.heard, Err: f.err}
	switch {
	case !f.heard.IsZero():
		s.Waiting = now.Sub(f.heard)
	case !f.begun.IsZero():
		s.Waiting = now.Sub(f.begun)
	}
	return s
}

func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun.IsZero() {
		f.begun = time.Now()
	}
}

// hear notes news of the resource. A list alone does not end an error: the watch may be what fails.
func (f *feed) hear(watching bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = time.Now()
	if watching {
		f.err = nil
	}
}

// fail notes an error. Those that only ask for another list or watch are none.
func (f *feed) fail(err error) {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) ||
		apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// source lists and watches one resource for an informer, with a label selector or none.
func source[L runtime.Object](
	f *feed, selector string,
	list func(context.Context, metav1.ListOptions) (L, error),
	watching func(context.Context, metav1.ListOptions) (watch.Interface, error),
) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			f.begin()
			o.LabelSelector = selector
			objects, err := list(ctx, o)
			if err != nil {
				f.fail(err)
				return nil, err
			}
			f.hear(false)
			return objects, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			f.begin()
			o.LabelSelector = selector
			w, err := watching(ctx, o)
			if err != nil {
				f.fail(err)
				return nil, err
			}
			f.hear(true)
			return newHeard(w, f), nil
		},
	}
}

// heard is a watch whose events a feed notes.
type heard struct {
	watch.Interface
	events chan watch.Event
	stop   chan struct{}
	once   sync.Once
}

func newHeard(w watch.Interface, f *feed) *heard {
	h := &heard{Interface: w, events: make(chan watch.Event), stop: make(chan struct{})}
	go func() {
		defer close(h.events)
		for e := range w.ResultChan() {
			if e.Type == watch.Error {
				f.fail(apierrors.FromObject(e.Object))
			} else {
				f.hear(true)
			}
			select {
			case h.events <- e:
			case <-h.stop:
				return
			}
		}
	}()
	return h
}

func (h *heard) ResultChan() <-chan watch.Event { return h.events }

func (h *heard) Stop() {
	h.once.Do(func() { close(h.stop) })
	h.Interface.Stop()
}

// Feeds say how current what the watcher has is, one entry for each resource, in a fixed order.
func (w *Watcher) Feeds() []FeedStatus { return w.feedsAt(time.Now()) }

func (w *Watcher) feedsAt(now time.Time) []FeedStatus {
	list := make([]FeedStatus, 0, len(w.feeds))
	for _, f := range w.feeds {
		if f != w.cidrs.feed || !w.cidrs.absent.Load() {
			list = append(list, f.status(now))
		}
	}
	return list
}

// Lag says which resources are not current, with one sentence for each cause; nil when all are.
func (w *Watcher) Lag() error { return w.lagAt(time.Now()) }

func (w *Watcher) lagAt(now time.Time) error {
	var causes []string
	byCause := map[string][]string{}
	for _, s := range w.feedsAt(now) {
		if cause := s.problem(); cause != "" {
			if byCause[cause] == nil {
				causes = append(causes, cause)
			}
			byCause[cause] = append(byCause[cause], s.Resource)
		}
	}
	var errs []error
	for _, cause := range causes {
		errs = append(errs, fmt.Errorf("no news of %s for more than %s", strings.Join(byCause[cause], ", "), cause))
	}
	return errors.Join(errs...)
}
