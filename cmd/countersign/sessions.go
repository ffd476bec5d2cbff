package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/action"
	"countersign/audit"
)

// session is one session as the log tells it.
type session struct {
	Session   string            `json:"session"`
	Principal *action.Principal `json:"principal,omitempty"`
	Source    *audit.Source     `json:"source,omitempty"`
	Start     time.Time         `json:"start"`
	// Shared says that there are records of several callers, who gave the same name to
	// what they did. Principal is the first of them.
	Shared bool `json:"shared,omitempty"`
	// Last is the time of its last record.
	Last time.Time `json:"last"`
	// End is why it ended; empty while it is open. A server that ended at once wrote
	// no end: that is lost.
	End string `json:"end,omitempty"`
	// Calls counts calls, Changes those that sent a request to change something, and
	// Denied those that policy or people refused.
	Calls   int `json:"calls"`
	Changes int `json:"changes"`
	Denied  int `json:"denied"`

	first            uint64 // seq
	changed, refused map[string]bool
}

func sessionsCommand(s *settings) *cobra.Command {
	var f filters
	var output string
	var limit int
	var check func() error
	sessions := &cobra.Command{
		Use:   "sessions",
		Short: "List sessions of agents, the one that began last first",
		Long: `List sessions of agents, the one that began last first. A session is what a client
names, or the MCP session, or else calls of one caller without a gap of half an
hour. With --since and --until: those that began then.`,
		Example: "  countersign audit sessions --since 1d\n  countersign audit sessions --principal system:serviceaccount:agents:oncall -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := check(); err != nil {
				return err
			}
			if limit < 1 {
				return errors.New("--limit is at least 1")
			}
			q, err := f.read(cmd, time.Now())
			if err != nil {
				return err
			}
			return reading(cmd, s, func(log audit.Log) error {
				found, more, err := findSessions(log, q, limit)
				switch {
				case err != nil:
					return err
				case output == "json":
					err = writeJSON(cmd.OutOrStdout(), found)
				case len(found) > 0:
					err = writeSessions(cmd.OutOrStdout(), found)
				}
				switch {
				case err != nil:
				case len(found) == 0:
					_, err = fmt.Fprintln(cmd.ErrOrStderr(), "countersign: no session matches")
				case more:
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "countersign: there are more; --limit shows more than %d\n", limit)
				}
				return err
			})
		},
	}
	f.add(sessions, "principal", "since", "until")
	sessions.Flags().IntVar(&limit, "limit", 20, "how many are shown at most; the records of each are counted")
	check = outputFlag(sessions, &output)
	return sessions
}

// findSessions finds those that began last, by the records of their starts.
func findSessions(log audit.Log, q audit.Query, limit int) (found []*session, more bool, err error) {
	found = []*session{}
	q.Type = audit.SessionStarted
	err = log.Search(&q, 1, 0, true, func(seq uint64, leaf []byte) error {
		if more = len(found) == limit; more {
			return errEnough
		}
		var r audit.Record
		if err := json.Unmarshal(leaf, &r); err != nil {
			return fmt.Errorf("record %d cannot be read: %w", seq, err)
		}
		found = append(found, &session{Session: r.Session, Principal: r.Principal, Source: r.Source, Start: r.Time, Last: r.Time, first: seq})
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, false, err
	}
	opened, err := lastOpened(log)
	if err != nil {
		return nil, false, err
	}
	for _, s := range found {
		// The same name can come again later, and a client may give the name of another's.
		err := log.Search(&audit.Query{Session: s.Session}, s.first, 0, false, func(seq uint64, leaf []byte) error {
			var r audit.Record
			if err := json.Unmarshal(leaf, &r); err != nil {
				return fmt.Errorf("record %d cannot be read: %w", seq, err)
			}
			if !sameCaller(r.Principal, s.Principal) {
				return nil
			}
			if r.Type == audit.SessionStarted && seq != s.first {
				s.End = lost
				return errEnough
			}
			if s.count(&r); s.End != "" {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return nil, false, err
		}
		if s.End == "" && s.first < opened {
			s.End = lost
		}
	}
	return found, more, nil
}

// lost is the end of a session whose server ended without a word.
const lost = "lost"

// lastOpened is the record of the server's last start, 0 where there is none.
func lastOpened(log audit.Log) (seq uint64, err error) {
	err = log.Search(&audit.Query{Type: audit.LogOpened}, 1, 0, true, func(n uint64, _ []byte) error {
		seq = n
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return seq, err
}

func sameCaller(a, b *action.Principal) bool {
	return a != nil && b != nil && a.Key() == b.Key() && a.Client == b.Client && a.OnBehalfOf == b.OnBehalfOf
}

// count adds one record of the session.
func (s *session) count(r *audit.Record) {
	if s.changed == nil {
		s.changed, s.refused = map[string]bool{}, map[string]bool{}
	}
	s.Last = r.Time
	switch r.Type {
	case audit.SessionEnded:
		if s.End = "ended"; r.End != nil {
			s.End = r.End.Reason
		}
	case audit.ToolIntent:
		s.Calls++
	case audit.CallRefused:
		s.Calls++
		s.refused[r.ID] = true
	case audit.PolicyDecided, audit.ApprovalDecided:
		if r.Outcome == audit.Denied {
			s.refused[r.Op] = true
		}
	case audit.ExecStarted:
		for _, a := range r.Actions {
			if a.Verb != action.Get && a.Verb != action.List {
				s.changed[r.Op] = true
			}
		}
	}
	s.Changes, s.Denied = len(s.changed), len(s.refused)
}

func writeSessions(w io.Writer, sessions []*session) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SESSION\tWHO\tCLIENT\tSTART\tEND\tCALLS\tCHANGES\tDENIED")
	for _, s := range sessions {
		caller, client := "", ""
		if s.Principal != nil {
			caller = s.Principal.String()
		}
		if s.Source != nil {
			client = s.Source.Agent
		}
		end := "open"
		if s.End != "" {
			end = s.Last.UTC().Format(time.RFC3339) + " " + s.End
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\n", cell(s.Session, 80), cell(caller, 60), cell(client, 40), s.Start.UTC().Format(time.RFC3339), cell(end, 60), s.Calls, s.Changes, s.Denied)
	}
	return table.Flush()
}
