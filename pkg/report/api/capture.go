package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
)

// patience is how long a client may leave the records of a capture unread before the agent ends it.
const patience = 15 * time.Second

// maxRequest bounds a request in bytes.
const maxRequest = 1 << 16

// serveCapture answers with records, one JSON object each, until the capture ends or the client is gone.
func serveCapture(w http.ResponseWriter, r *http.Request, source Source) {
	request, err := readRequest[capture.Request](w, r, maxRequest)
	if err != nil {
		return
	}
	sink := sink{control: http.NewResponseController(w), encoder: json.NewEncoder(w)}
	if err := source.Capture(r.Context(), request, &sink); err != nil && !sink.begun {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// readRequest reads a request of at most so many bytes. The error was answered.
func readRequest[T any](w http.ResponseWriter, r *http.Request, most int64) (request T, err error) {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, most))
	decoder.DisallowUnknownFields()
	if err = decoder.Decode(&request); err != nil {
		http.Error(w, "read the request: "+err.Error(), http.StatusBadRequest)
	}
	return request, err
}

// sink writes records to a client.
type sink struct {
	control *http.ResponseController
	encoder *json.Encoder
	begun   bool
}

// Send implements capture.Sink.
func (s *sink) Send(record capture.Record) error {
	s.begun = true
	if err := s.control.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("send records: %w", err)
	}
	return s.encoder.Encode(record)
}

// Flush implements capture.Sink.
func (s *sink) Flush() error { return s.control.Flush() }

// Capture asks for packets, and calls each with every record until the capture's end, which is the last. It has no
// limit of time but the request's. The error is each's, or says that the agent did not answer or was cut off.
func (c Client) Capture(ctx context.Context, request capture.Request, each func(capture.Record) error) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the end, it closes the connection, and that ends the capture
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+pathCapture, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: &http.Transport{DialContext: c.dial, DisableKeepAlives: true}}).Do(post)
	if err != nil {
		return c.noAnswer(err)
	}
	defer response.Body.Close()
	if err := refusal(response, pathCapture); err != nil {
		return err
	}
	for decoder := json.NewDecoder(response.Body); ; {
		var record capture.Record
		switch err := decoder.Decode(&record); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the capture was cut off: the agent or the connection to it has ended")
		case err != nil:
			return fmt.Errorf("read the agent's records: %w", err)
		}
		if err := each(record); err != nil || record.End != nil {
			return err
		}
	}
}
