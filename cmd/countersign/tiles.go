package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// tileHeight and tileWidth are those of C2SP tlog-tiles.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tilePath is the path of a tile, as C2SP tlog-tiles has it; level -1 is a bundle
// of entries.
func tilePath(t tlog.Tile) string {
	path := strings.TrimPrefix(t.Path(), "tile/8/")
	if rest, found := strings.CutPrefix(path, "data/"); found {
		path = "entries/" + rest
	}
	return filepath.FromSlash("tile/" + path)
}

// exportTiles writes the log as C2SP tlog-tiles. The checkpoint comes last, so that
// the folder can be served meanwhile. What an export before has left is written
// again.
func exportTiles(log audit.Log, dir string) error {
	signed, err := log.Checkpoint()
	if err != nil {
		return err
	}
	c, err := audit.ReadCheckpoint(signed)
	if err != nil {
		return fmt.Errorf("the log's checkpoint: %w", err)
	}
	if c.Size == 0 {
		return errors.New("the log has no record yet")
	}
	before, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if old, err := audit.ReadCheckpoint(before); err != nil || old.Origin != c.Origin || old.Size > c.Size {
			return fmt.Errorf("%s holds something else than an earlier state of this log; give an empty folder", dir)
		}
	}
	write := func(path string, data []byte) error {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return writeFile(path, data)
	}
	for _, t := range tlog.NewTiles(tileHeight, 0, int64(c.Size)) {
		data, err := tlog.ReadTileData(t, log)
		if err == nil {
			err = write(tilePath(t), data)
		}
		if err != nil {
			return fmt.Errorf("writing hashes: %w", err)
		}
	}
	var bundle []byte
	next := uint64(1)
	err = log.Search(&audit.Query{}, 1, c.Size, false, func(seq uint64, leaf []byte) error {
		if seq != next {
			return fmt.Errorf("record %d is not in the log any more; tiles hold all of them", next)
		}
		next++
		if len(leaf) > audit.MaxLeaf {
			return fmt.Errorf("record %d is longer than a record can be", seq)
		}
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(leaf))), leaf...)
		width := int((seq-1)%tileWidth) + 1
		if width < tileWidth && seq < c.Size {
			return nil
		}
		data := bundle
		bundle = bundle[:0]
		return write(tilePath(tlog.Tile{H: tileHeight, L: -1, N: int64((seq - 1) / tileWidth), W: width}), data)
	})
	if err == nil && next != c.Size+1 {
		err = fmt.Errorf("the log ends with record %d, and its checkpoint is of %d", next-1, c.Size)
	}
	if err != nil {
		return fmt.Errorf("writing entries: %w", err)
	}
	return write("checkpoint", signed)
}

func proofCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "proof SEQ",
		Short: "Print a proof that a record is in the log",
		Long: `Print a proof that a record is in the log (C2SP tlog-proof): who has the record, as
audit export writes it, and the log's public key needs nothing else to check it.`,
		Example: "  countersign audit proof 42 > 42.tlog-proof",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseUint(args[0], 10, 62)
			if err != nil || seq == 0 {
				return fmt.Errorf("%q is not the sequence number of a record", args[0])
			}
			return reading(cmd, s, func(log audit.Log) error {
				proof, err := proveRecord(log, seq)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(proof)
				return err
			})
		},
	}
}

func proveRecord(log audit.Log, seq uint64) ([]byte, error) {
	signed, err := log.Checkpoint()
	if err != nil {
		return nil, err
	}
	c, err := audit.ReadCheckpoint(signed)
	if err != nil {
		return nil, fmt.Errorf("the log's checkpoint: %w", err)
	}
	if seq > c.Size {
		return nil, fmt.Errorf("there is no record %d yet: the log has %d", seq, c.Size)
	}
	hashes, err := tlog.ProveRecord(int64(c.Size), int64(seq)-1, log)
	if err != nil {
		return nil, err
	}
	leaf, err := log.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(seq)-1)})
	if err == nil {
		err = tlog.CheckRecord(hashes, int64(c.Size), c.Root, int64(seq)-1, leaf[0])
	}
	if err != nil {
		return nil, fmt.Errorf("the log's own hashes do not prove it: %w; countersign audit verify says what is wrong", err)
	}
	proof := fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nindex %d\n", seq-1)
	for _, h := range hashes {
		proof = append(proof, h.String()+"\n"...)
	}
	return append(append(proof, '\n'), signed...), nil
}
