"""The zoo: trained policies under short names, `zoo/NAME`, in docs/zoo or elsewhere, checked by their digests."""
