"""What SageMaker's hosting instance types have: the figures of EC2.

Leaf module of constants. Next: `instances.py`, which makes objects of them.
"""

# family | accelerator | MiB of each | kind, then size: devices, vCPUs, GiB of RAM, GB of NVMe.
ACCELERATED = """
g4dn | T4 | 16384 | gpu
  xlarge 1 4 16 125; 2xlarge 1 8 32 225; 4xlarge 1 16 64 225; 8xlarge 1 32 128 900
  12xlarge 4 48 192 900; 16xlarge 1 64 256 900
g5 | A10G | 22888 | gpu
  xlarge 1 4 16 250; 2xlarge 1 8 32 450; 4xlarge 1 16 64 600; 8xlarge 1 32 128 900
  12xlarge 4 48 192 3800; 16xlarge 1 64 256 1900; 24xlarge 4 96 384 3800; 48xlarge 8 192 768 7600
g6 | L4 | 22888 | gpu
  xlarge 1 4 16 250; 2xlarge 1 8 32 450; 4xlarge 1 16 64 600; 8xlarge 1 32 128 900
  12xlarge 4 48 192 3760; 16xlarge 1 64 256 1880; 24xlarge 4 96 384 3760; 48xlarge 8 192 768 7520
g6e | L40S | 45776 | gpu
  xlarge 1 4 32 250; 2xlarge 1 8 64 450; 4xlarge 1 16 128 600; 8xlarge 1 32 256 900
  12xlarge 4 48 384 3800; 16xlarge 1 64 512 1900; 24xlarge 4 96 768 3800; 48xlarge 8 192 1536 7600
g7 | RTX PRO 4500 | 32768 | gpu
  2xlarge 1 8 32 440; 4xlarge 1 16 64 875; 8xlarge 1 32 128 930
  12xlarge 2 48 192 1900; 24xlarge 4 96 384 3800; 48xlarge 8 192 768 7600
g7e | RTX PRO 6000 | 98304 | gpu
  2xlarge 1 8 64 1900; 4xlarge 1 16 128 1900; 8xlarge 1 32 256 1900
  12xlarge 2 48 512 3800; 24xlarge 4 96 1024 7600; 48xlarge 8 192 2048 15200
p2 | K80 | 12288 | gpu
  xlarge 1 4 61 0; 8xlarge 8 32 488 0; 16xlarge 16 64 732 0
p3 | V100 | 16384 | gpu
  2xlarge 1 8 61 0; 8xlarge 4 32 244 0; 16xlarge 8 64 488 0
p4d | A100 | 40960 | gpu
  24xlarge 8 96 1152 8000
p4de | A100 | 81920 | gpu
  24xlarge 8 96 1152 8000
p5 | H100 | 81920 | gpu
  4xlarge 1 16 256 3800; 48xlarge 8 192 2048 30400
p5e | H200 | 144384 | gpu
  48xlarge 8 192 2048 30400
p5en | H200 | 144384 | gpu
  48xlarge 8 192 2048 30400
p6-b200 | B200 | 183359 | gpu
  48xlarge 8 192 2048 30400
p6-b300 | B300 | 275040 | gpu
  48xlarge 8 192 4096 30400
inf1 | Inferentia | 8192 | neuron
  xlarge 1 4 8 0; 2xlarge 1 8 16 0; 6xlarge 4 24 48 0; 24xlarge 16 96 192 0
inf2 | Inferentia2 | 32768 | neuron
  xlarge 1 4 16 0; 8xlarge 1 32 128 0; 24xlarge 6 96 384 0; 48xlarge 12 192 768 0
trn1 | Trainium | 32768 | neuron
  2xlarge 1 8 32 474; 32xlarge 16 128 512 7600
trn1n | Trainium | 32768 | neuron
  32xlarge 16 128 512 7600
trn2 | Trainium2 | 98304 | neuron
  48xlarge 16 192 2048 7600
"""

# family: GiB of RAM for each vCPU, processor, sizes. A size Nxlarge has 4 N vCPUs.
# With a `d` after the generation they have NVMe, of a size that nothing here depends on.
GENERAL = """
c5 2 x86_64 large xlarge 2xlarge 4xlarge 9xlarge 18xlarge
c5d 2 x86_64 large xlarge 2xlarge 4xlarge 9xlarge 18xlarge
m5 4 x86_64 large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
m5d 4 x86_64 large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
r5 8 x86_64 large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
r5d 8 x86_64 large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
c6i 2 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
c6in 2 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
m6i 4 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
r6i 8 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
c7i 2 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
m7i 4 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
r7i 8 x86_64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
c6g 2 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
m6g 4 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
r6g 8 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
c7g 2 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
c8g 2 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
m8g 4 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
r8g 8 arm64 large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
"""
