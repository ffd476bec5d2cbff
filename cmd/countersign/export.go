package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/admin"
	"countersign/audit"
)

// exporting are the flags of audit export beside the filters.
type exporting struct {
	format, cursor, checkpoint, to string
	from                           uint64
	follow                         bool
}

func exportCommand(s *settings) *cobra.Command {
	var f filters
	var e exporting
	export := &cobra.Command{
		Use:   "export",
		Short: "Write records of the audit log, oldest first",
		Long: `Write records of the audit log, oldest first: as JSONL, one record a line, byte for
byte as stored; as OCSF events for a SIEM; or as a folder of C2SP tiles, which
public tools for transparency logs read.

With --cursor the next run goes on where this one ended. It is written after the
records, so that after a crash some may come twice, and none is left out.`,
		Example: "  countersign audit export > audit.jsonl\n" +
			"  countersign audit export --checkpoint audit.checkpoint > audit.jsonl\n" +
			"  countersign audit export --since 7d --outcome denied --namespace shop\n" +
			"  countersign audit export --format ocsf --follow --cursor siem.cursor | forwarder\n" +
			"  countersign audit export --format tiles --to /srv/log",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := f.read(cmd, time.Now())
			if err == nil {
				err = e.check(cmd, q)
			}
			if err != nil {
				return err
			}
			return reading(cmd, s, func(log audit.Log) error {
				if e.format == "tiles" {
					return exportTiles(log, e.to)
				}
				return e.run(cmd, log, q)
			})
		},
	}
	f.add(export)
	flags := export.Flags()
	flags.StringVar(&e.format, "format", "jsonl", "jsonl, ocsf or tiles")
	flags.Uint64Var(&e.from, "from", 1, "sequence number of the first record")
	flags.StringVar(&e.cursor, "cursor", "", "file that says where to go on, and is updated; begins with the first record where there is none")
	flags.BoolVar(&e.follow, "follow", false, "go on with the records that come, until interrupted")
	flags.StringVar(&e.checkpoint, "checkpoint", "", "file for the signed checkpoint of exactly the records that are written")
	flags.StringVar(&e.to, "to", "", "folder for --format tiles")
	return export
}

// check refuses what does not go together.
func (e *exporting) check(cmd *cobra.Command, q audit.Query) error {
	given := cmd.Flags().Changed
	part := q != audit.Query{} || given("from") || given("cursor") || e.follow
	switch {
	case e.format != "jsonl" && e.format != "ocsf" && e.format != "tiles":
		return fmt.Errorf("--format %s: jsonl, ocsf or tiles is expected", e.format)
	case e.format == "tiles" && (part || given("checkpoint")):
		return errors.New("--format tiles is of the whole log and has its checkpoint with it: no other flag but --to goes with it")
	case e.format == "tiles" && e.to == "":
		return errors.New("--format tiles needs --to, the folder to write to")
	case e.format != "tiles" && given("to"):
		return errors.New("--to goes with --format tiles only; records go to standard output")
	case given("from") && given("cursor"):
		return errors.New("--from and --cursor both say where to begin; give one of them")
	case given("cursor") && e.cursor == "":
		return errors.New("--cursor is empty: it names a file")
	case given("checkpoint") && e.checkpoint == "":
		return errors.New("--checkpoint is empty: it names a file")
	case given("checkpoint") && (part || e.format != "jsonl"):
		return errors.New("--checkpoint is of all records as they are stored: no filter, --from, --cursor, --follow or --format goes with it")
	case e.follow && !q.Until.IsZero():
		return errors.New("--follow has no end, and --until is one; give one of them")
	}
	return nil
}

func (e *exporting) run(cmd *cobra.Command, log audit.Log, q audit.Query) (err error) {
	follower, live := log.(*admin.LogReader)
	if e.follow && !live {
		return errors.New("--follow needs the running server, and none answers: start it, or leave out --follow to read the file")
	}
	from, to := e.from, uint64(0)
	if e.cursor != "" {
		if from, err = readCursor(e.cursor, log); err != nil {
			return err
		}
	}
	var checkpoint []byte
	if e.checkpoint != "" {
		// Before the records, so that they are all there.
		if checkpoint, err = log.Checkpoint(); err != nil {
			return err
		}
		c, err := audit.ReadCheckpoint(checkpoint)
		if err != nil {
			return fmt.Errorf("the log's checkpoint: %w", err)
		}
		if to = c.Size; to == 0 {
			return errors.New("the log has no record yet")
		}
	}
	out := &records{out: bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10), format: e.format, cursor: e.cursor}
	if e.follow {
		if err = follower.Follow(&q, from, out.write, out.flush); cmd.Context().Err() != nil {
			err = nil // it was asked to end
		}
		if errors.Is(err, admin.ErrCut) {
			err = fmt.Errorf("%w: it stopped, or was stopped; go on with --from %d or a cursor", err, max(from, out.last+1))
		}
	} else {
		err = log.Search(&q, from, to, false, out.write)
	}
	if flushed := out.flush(); err == nil {
		err = flushed
	}
	if err == nil && e.checkpoint != "" {
		err = writeFile(e.checkpoint, checkpoint)
	}
	if err == nil && out.count == 0 {
		_, err = fmt.Fprintln(cmd.ErrOrStderr(), "countersign: no record matches")
	}
	return err
}

// records writes records, and to the cursor how far it has come.
type records struct {
	out    *bufio.Writer
	format string
	cursor string // its file; empty where there is none
	count  int
	last   uint64
	hash   tlog.Hash // of the last as a leaf
	noted  uint64    // what the cursor's file says
	broken error     // of writing: what did not go out is not noted
}

// cursorEvery is after how many records the cursor is written.
const cursorEvery = 10_000

func (r *records) write(seq uint64, leaf []byte) error {
	line := leaf
	if r.format == "ocsf" {
		var err error
		if line, err = audit.OCSF(leaf); err != nil {
			return fmt.Errorf("record %d: %w", seq, err)
		}
	}
	if _, r.broken = r.out.Write(line); r.broken == nil {
		r.broken = r.out.WriteByte('\n')
	}
	if r.broken != nil {
		return r.broken
	}
	r.count++
	r.last = seq
	if r.cursor == "" {
		return nil
	}
	r.hash = tlog.RecordHash(leaf)
	if r.count%cursorEvery == 0 {
		return r.flush()
	}
	return nil
}

func (r *records) flush() error {
	if r.broken == nil {
		r.broken = r.out.Flush()
	}
	if r.broken != nil || r.cursor == "" || r.last == r.noted {
		return r.broken
	}
	r.noted = r.last
	if err := writeFile(r.cursor, fmt.Appendf(nil, "%d %x\n", r.last, r.hash[:])); err != nil {
		return fmt.Errorf("writing the cursor: %w", err)
	}
	return nil
}

// readCursor is the number of the record to go on with. A cursor has the number of
// the last record that was written and its hash, so that another log, or one that
// was put back to an earlier state, is found out.
func readCursor(path string, log audit.Log) (uint64, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the cursor: %w", err)
	}
	number, rest, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	seq, err := strconv.ParseUint(number, 10, 62)
	hash, badHash := hex.DecodeString(rest)
	if err != nil || badHash != nil || seq == 0 || len(hash) != tlog.HashSize {
		return 0, fmt.Errorf("%s is not a cursor that audit export wrote; remove it to begin anew", path)
	}
	stored, err := log.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(seq)-1)})
	if errors.Is(err, context.Canceled) {
		return 0, err
	}
	if err != nil || stored[0] != tlog.Hash(hash) {
		return 0, fmt.Errorf("the cursor %s ends with a record %d that this log does not have: it is another log, or was changed or put back since (countersign audit verify says); remove the cursor to begin anew", path, seq)
	}
	return seq + 1, nil
}
