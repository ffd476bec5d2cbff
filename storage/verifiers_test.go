package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/torchwood"
	formats "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
	"countersign/audit/logtest"
)

// Verifiers that were written by others, from the standards, accept what this log
// signs, proves and exports: transparency-dev's formats and merkle, and torchwood.
func TestOutsideVerifiers(t *testing.T) {
	folder := t.TempDir()
	s := unsynced(t, filepath.Join(folder, "store.db"))
	defer s.Close()
	maker := logtest.New(6)
	var signed [][]byte
	sizes := []int{1, 2, 3, 255, 256, 257, 600}
	for _, size := range sizes {
		fill(t, s, maker, size, 100)
		signed = append(signed, checkpoint(t, s))
	}
	public := string(bytes.TrimSpace(read(filepath.Join(folder, "audit.pub"))))
	all := leaves(t, s)

	var checkpoints []audit.Checkpoint
	for _, signed := range signed {
		own, err := audit.OpenCheckpoint(signed, s.signer.verifier)
		if err != nil {
			t.Fatal(err)
		}
		checkpoints = append(checkpoints, own)

		key, err := note.NewVerifier(public)
		if err != nil {
			t.Fatal(err)
		}
		c, rest, _, err := formats.ParseCheckpoint(signed, own.Origin, key)
		if err != nil || c.Size != own.Size || !bytes.Equal(c.Hash, own.Root[:]) || len(rest) > 0 {
			t.Errorf("formats: %+v, %v", c, err)
		}
		if _, err := torchwood.ParseCheckpoint(own.Text()); err != nil {
			t.Errorf("torchwood: %v", err)
		}
		theirs, err := torchwoodCheckpoint(signed, public, own.Origin)
		if err != nil || theirs.Origin != own.Origin || uint64(theirs.N) != own.Size || theirs.Hash != own.Root {
			t.Errorf("torchwood: %+v, %v", theirs, err)
		}
		changed := bytes.Replace(signed, []byte(own.Text()), []byte(audit.Checkpoint{Origin: own.Origin, Size: own.Size + 1, Root: own.Root}.Text()), 1)
		if _, _, _, err := formats.ParseCheckpoint(changed, own.Origin, key); err == nil {
			t.Error("formats accepts a changed checkpoint")
		}
		if _, err := torchwoodCheckpoint(changed, public, own.Origin); err == nil {
			t.Error("torchwood accepts a changed checkpoint")
		}
	}

	hasher := rfc6962.DefaultHasher
	for i, newer := range checkpoints {
		size := int64(newer.Size)
		for index := int64(0); index < size; index += 1 + size/40 {
			hashes, err := tlog.ProveRecord(size, index, s)
			if err != nil {
				t.Fatal(err)
			}
			leaf := hasher.HashLeaf(all[index])
			if err := proof.VerifyInclusion(hasher, uint64(index), newer.Size, leaf, plain(hashes), newer.Root[:]); err != nil {
				t.Errorf("record %d of %d: %v", index+1, size, err)
			}
			if proof.VerifyInclusion(hasher, uint64(index), newer.Size, hasher.HashLeaf(append(all[index], ' ')), plain(hashes), newer.Root[:]) == nil {
				t.Errorf("record %d of %d is accepted with a space more", index+1, size)
			}
		}
		for _, older := range checkpoints[:i] {
			hashes, err := tlog.ProveTree(size, int64(older.Size), s)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.VerifyConsistency(hasher, older.Size, newer.Size, plain(hashes), older.Root[:], newer.Root[:]); err != nil {
				t.Errorf("%d and %d: %v", older.Size, newer.Size, err)
			}
			if proof.VerifyConsistency(hasher, older.Size, newer.Size, plain(hashes), newer.Root[:], newer.Root[:]) == nil {
				t.Errorf("%d and %d: another root is accepted", older.Size, newer.Size)
			}
		}
	}

	// Tiles are read with nothing but what is in their folder and the public key.
	tiles := t.TempDir()
	writeTiles(t, s, tiles, all)
	entries, err := torchwoodEntries(t, tiles, public, s.signer.Name())
	if err != nil || len(entries) != len(all) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i := range entries {
		if !bytes.Equal(entries[i], all[i]) {
			t.Errorf("entry %d is %q", i, entries[i])
		}
	}
	bundle := filepath.Join(tiles, "tile", "entries", "001")
	data := read(bundle)
	data[1000] ^= 1
	write(t, bundle, data, 0o600)
	if _, err := torchwoodEntries(t, tiles, public, s.signer.Name()); err == nil {
		t.Error("a changed bundle is accepted")
	}
}

func torchwoodCheckpoint(signed []byte, public, origin string) (torchwood.Checkpoint, error) {
	key, err := note.NewVerifier(public)
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	c, _, err := torchwood.VerifyCheckpoint(signed, torchwood.ThresholdPolicy(2, torchwood.SingleVerifierPolicy(key), torchwood.OriginPolicy(origin)))
	return c, err
}

func torchwoodEntries(t *testing.T, folder, public, origin string) (entries [][]byte, err error) {
	t.Helper()
	c, err := torchwoodCheckpoint(read(filepath.Join(folder, "checkpoint")), public, origin)
	if err != nil {
		return nil, err
	}
	tiles, err := torchwood.NewTileFS(os.DirFS(folder))
	if err != nil {
		return nil, err
	}
	client, err := torchwood.NewClient(tiles)
	if err != nil {
		return nil, err
	}
	for _, entry := range client.AllEntries(t.Context(), c.Tree, 0) {
		entries = append(entries, bytes.Clone(entry))
	}
	if _, _, err := client.Entry(t.Context(), c.Tree, c.N/2); err != nil {
		return nil, err
	}
	return entries, client.Err()
}

// writeTiles lays out the log as C2SP tlog-tiles has it.
func writeTiles(t *testing.T, s *Store, folder string, all [][]byte) {
	t.Helper()
	put := func(path string, data []byte) {
		path = filepath.Join(folder, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, data, 0o600)
	}
	for _, tile := range tlog.NewTiles(torchwood.TileHeight, 0, int64(len(all))) {
		data, err := tlog.ReadTileData(tile, s)
		if err != nil {
			t.Fatal(err)
		}
		put(torchwood.TilePath(tile), data)
		if tile.L == 0 {
			var bundle []byte
			for _, leaf := range all[tile.N<<8 : tile.N<<8+int64(tile.W)] {
				if bundle, err = torchwood.AppendTileEntry(bundle, leaf); err != nil {
					t.Fatal(err)
				}
			}
			tile.L = -1
			put(torchwood.TilePath(tile), bundle)
		}
	}
	put("checkpoint", checkpoint(t, s))
}

func plain(hashes []tlog.Hash) (list [][]byte) {
	for _, h := range hashes {
		list = append(list, h[:])
	}
	return list
}
