package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"filippo.io/age"
	"github.com/spf13/cobra"
	kjson "sigs.k8s.io/json"

	"countersign/audit"
	"countersign/gate"
)

// maxShown bounds how many records one timeline has; search shows the others.
const maxShown = 10_000

// timeline is what the log tells of a session, of an operation, or in one record.
type timeline struct {
	// Session is nil where an operation or a record was asked for.
	Session    *session     `json:"session,omitempty"`
	Operations []*operation `json:"operations"`
	// More says that there are records after these.
	More bool `json:"more,omitempty"`

	byOp  map[string]*operation
	count int // of records
	bytes int // of payloads
}

// operation are the records of one operation, or one record that is of none.
type operation struct {
	Op      string  `json:"op,omitempty"`
	Records []*step `json:"records"`
}

// step is one record with its payload.
type step struct {
	Record json.RawMessage `json:"record"`
	// Payload is what the record commits to, masked; Unsealed the same as it was
	// before that. PayloadError is why one is not there.
	Payload      json.RawMessage `json:"payload,omitempty"`
	Unsealed     json.RawMessage `json:"unsealed,omitempty"`
	PayloadError string          `json:"payload_error,omitempty"`

	r audit.Record
}

func showCommand(s *settings) *cobra.Command {
	var output, identity string
	var payloads bool
	var check func() error
	show := &cobra.Command{
		Use:   "show SESSION|OP|SEQ",
		Short: "Show what happened in a session, in an operation, or around a record",
		Long: `Show what happened in a session, in an operation, or in the operation that a record
is of, step by step: what the agent asked for, what policy said, what people were
shown and answered, what was sent to the cluster, and how that ended.

Payloads are masked. Where the server keeps unmasked ones for auditors
(audit.recipients), --identity reads them with an auditor's private key, here and
not in the server.`,
		Example: "  countersign audit show gap:T5J3QK\n  countersign audit show 0198c0de-1c2d-7e4e-8fe5-8b08d45bcb3f --payloads\n  countersign audit show 42 --identity auditor.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := check(); err != nil {
				return err
			}
			identities, err := readIdentities(cmd, identity)
			if err != nil {
				return err
			}
			return reading(cmd, s, func(log audit.Log) error {
				t, err := readTimeline(log, args[0])
				if err != nil {
					return err
				}
				t.readPayloads(log, payloads, identities)
				if output == "json" {
					err = writeJSON(cmd.OutOrStdout(), t)
				} else {
					err = writeTimeline(cmd.OutOrStdout(), t)
				}
				if err == nil && t.More {
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "countersign: these are the first %d records; countersign audit search --session shows others\n", maxShown)
				}
				return err
			})
		},
	}
	show.Flags().BoolVar(&payloads, "payloads", false, "show payloads, too: the requests and the answers, masked")
	show.Flags().StringVar(&identity, "identity", "", "file with an age private key, to read unmasked payloads")
	check = outputFlag(show, &output)
	return show
}

func readIdentities(cmd *cobra.Command, path string) ([]age.Identity, error) {
	if path == "" {
		if cmd.Flags().Changed("identity") {
			return nil, errors.New("--identity is empty: it names a file with an age private key")
		}
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the identity: %w", err)
	}
	defer f.Close()
	identities, err := age.ParseIdentities(f)
	if err != nil { // whose text could hold a part of the key
		return nil, fmt.Errorf("reading the identity: %s is not a file that age-keygen wrote", path)
	}
	return identities, nil
}

// readTimeline finds what is meant: a record by its number, else a session, else an
// operation.
func readTimeline(log audit.Log, what string) (*timeline, error) {
	if seq, err := strconv.ParseUint(what, 10, 62); err == nil && seq > 0 {
		t := &timeline{byOp: map[string]*operation{}}
		if err := log.Search(&audit.Query{}, seq, seq, false, t.add); err != nil {
			return nil, err
		}
		if len(t.Operations) == 0 {
			return nil, fmt.Errorf("the log has no record %d", seq)
		}
		if what = t.Operations[0].Op; what == "" {
			return t, nil
		}
	}
	for _, q := range []audit.Query{{Session: what}, {Op: what}} {
		t := &timeline{byOp: map[string]*operation{}}
		err := log.Search(&q, 1, 0, false, t.add)
		if errors.Is(err, errEnough) {
			t.More, err = true, nil
		}
		if err != nil {
			return nil, err
		}
		if len(t.Operations) == 0 {
			continue
		}
		if q.Session != "" {
			if t.Session, err = t.summary(log); err != nil {
				return nil, err
			}
		}
		return t, nil
	}
	return nil, fmt.Errorf("the log has no session and no operation %q; countersign audit sessions lists sessions", what)
}

// add puts a record to its operation, in the order of their first records.
func (t *timeline) add(seq uint64, leaf []byte) error {
	s := &step{Record: slices.Clone(leaf)}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(leaf, &s.r); err != nil {
		return fmt.Errorf("record %d cannot be read: %w; countersign audit verify says what was changed", seq, err)
	}
	if t.count == maxShown {
		return errEnough
	}
	t.count++
	at := t.byOp[s.r.Op]
	if at == nil {
		at = &operation{Op: s.r.Op}
		t.Operations = append(t.Operations, at)
		if at.Op != "" {
			t.byOp[at.Op] = at
		}
	}
	at.Records = append(at.Records, s)
	return nil
}

// summary counts what the timeline has.
func (t *timeline) summary(log audit.Log) (*session, error) {
	first := t.Operations[0].Records[0].r
	s := &session{Session: first.Session, Principal: first.Principal, Source: first.Source, Start: first.Time, first: first.Seq}
	var all []*audit.Record
	for _, op := range t.Operations {
		for _, step := range op.Records {
			all = append(all, &step.r)
		}
	}
	slices.SortFunc(all, func(a, b *audit.Record) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, r := range all {
		if r.Principal != nil && !sameCaller(r.Principal, s.Principal) {
			s.Shared = true
		}
		s.End = "" // an agent can go on with what it ended under the same name
		s.count(r)
	}
	opened, err := lastOpened(log)
	if s.End == "" && s.first < opened {
		s.End = lost
	}
	return s, err
}

// maxPayloads bounds what payloads take in one timeline, in bytes.
const maxPayloads = 256 << 20

// readPayloads gets what is to be shown of payloads: what approvers were shown always,
// the others where all are asked for. Where one is not to be had, the rest of the
// timeline is shown all the same.
func (t *timeline) readPayloads(log audit.Log, all bool, identities []age.Identity) {
	for _, op := range t.Operations {
		for _, s := range op.Records {
			p := s.r.Payload
			if p == nil || !all && identities == nil && s.r.Type != audit.ApprovalRequested {
				continue
			}
			if t.bytes += p.Bytes; p.Sealed != "" && identities != nil {
				t.bytes += p.Bytes
			}
			if t.bytes > maxPayloads {
				s.PayloadError = "it is too much for one timeline; show this operation by itself"
				continue
			}
			if err := s.readPayload(log, identities); errors.Is(err, gate.ErrNotFound) {
				s.PayloadError = "it is not there any more; countersign audit verify says whether retention took it out"
			} else if err != nil {
				s.PayloadError = err.Error()
			}
		}
	}
}

func (s *step) readPayload(log audit.Log, identities []age.Identity) error {
	payload, err := log.Payload(s.r.Seq)
	if err != nil {
		return err
	}
	if !s.r.Payload.Holds(payload) {
		return errors.New("it is not what the record commits to; countersign audit verify says what was changed")
	}
	s.Payload = asJSON(payload)
	if identities == nil || s.r.Payload.Sealed == "" {
		return nil
	}
	sealed, err := log.SealedPayload(s.r.Seq)
	if err != nil {
		return err
	}
	if payload, err = audit.Unseal(sealed, identities, s.r.Payload); err == nil {
		s.Unsealed = asJSON(payload)
	}
	return err
}

// asJSON is a payload, or a text where it should be no JSON.
func asJSON(payload []byte) json.RawMessage {
	if !json.Valid(payload) {
		payload, _ = json.Marshal(string(payload))
	}
	return payload
}
